"""The result of a training: predictions on images and videos, and exported students."""
