"""What is learnt: embedder, losses, distillation, drift. Imports neither Ray nor any other package of stream_odml."""
