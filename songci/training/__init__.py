"""What stands around the training step: checkpoints, optimiser, loss, the folder of a run, the machine."""
