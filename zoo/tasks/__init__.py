"""What a user makes of a pre-trained network with labels of his own: training, the file that it saves, predictions."""
