import deepinv as dinv, deepinv_jitter as dj, torch
from torch.utils.data import DataLoader

size, epochs = (64, 64), 60
train = dj.BrainSliceDataset("train", img_size=size, resolution=3, contrast=True)
test = dj.BrainSliceDataset("test", img_size=size, resolution=3, spacing=2)
physics = dj.SingleCoilMRI(img_size=size, noise_model=dinv.physics.GaussianNoise(0.05))
masks = dj.FastMRIMaskGenerator(
    size, acceleration=4, seed=0
)  # a new one for every image


def trained(trainer=dj.JitterTrainer, jitter=None, **options):
    torch.manual_seed(0)
    network = dj.UnrolledDnCNN(2, depth=4, width=16, residual=True)
    model = dj.UnfoldedPGD(network, max_iter=5, jitter=jitter)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=epochs + 1)
    options |= {
        "epochs": epochs,
        "scheduler": scheduler,
        "physics_generator": masks,
        "ema": 0.998,
        "save_path": None,
    }
    loader = DataLoader(train, batch_size=4, shuffle=True)
    return trainer(
        model, physics, adam, loader, online_measurements=True, **options
    ).train()


networks = {"MSE": trained(), "SPGD jittering": trained(jitter=0.05)}
networks["input jittering"] = trained(dj.InputJitterTrainer, sigma=0.05)
comparison = dj.evaluate_robustness(
    networks,
    DataLoader(test, batch_size=8),
    physics,
    physics_generator=masks,
    epsilons=[0.5, 1],
    relative_to="noise",
)
print(comparison.table(compare_to="MSE"))
comparison.plot("curves.png")
comparison.images(path="images.png")
