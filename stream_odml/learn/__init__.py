"""What is learnt: embedder, losses, distillation, drift. Imports neither Ray nor any other room."""
