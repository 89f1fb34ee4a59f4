import deepinv as dinv, deepinv_jitter as dj, torch
from torch.utils.data import DataLoader

size = (64, 64)
brain = {"img_size": size, "resolution": 3}  # slices of a real brain, 3 mm a pixel
train = DataLoader(dj.BrainSliceDataset("train", **brain), batch_size=4, shuffle=True)
test = DataLoader(dj.BrainSliceDataset("test", spacing=2, **brain), batch_size=7)
physics = dj.SingleCoilMRI(img_size=size, noise_model=dinv.physics.GaussianNoise(0.05))
masks = dj.FastMRIMaskGenerator(size, acceleration=4, seed=0)  # one for each image
online = dict(online_measurements=True, physics_generator=masks, save_path=None)
attack = dj.FrankWolfeAttack(dj.L2Ball(0.5, relative_to="noise"), steps=1, keep="last")
schemes = {"MSE": (0, 0, 0), "SPGD jittering": (0.05, 0, 0), "noise and attacks": (0, 0.05, 0.5)}
nets = {}
for name, (jitter, sigma, share) in schemes.items():
    torch.manual_seed(0)
    denoiser = dj.UnrolledDnCNN(2, depth=4, width=16, residual=True)
    model = dj.UnfoldedPGD(denoiser, max_iter=5, jitter=jitter)
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    robust = dict(attack=attack, sigma=sigma, share=share, epochs=60, ema=0.998)
    nets[name] = dj.RobustTrainer(model, physics, adam, train, **robust, **online).train()
comparison = dj.evaluate_robustness(
    nets, test, physics, physics_generator=masks, epsilons=[0.5, 1], relative_to="noise"
)
print(comparison.table(compare_to="MSE"))
comparison.plot("curves.png")
comparison.images(path="images.png")
