"""Reinforcement learning by value gradient flow: data, references, critics, training, evaluation."""
