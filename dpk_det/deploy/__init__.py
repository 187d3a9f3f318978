"""Uses the result of a training: predicts on images and videos, and exports students."""
