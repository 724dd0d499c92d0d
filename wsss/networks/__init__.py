"""Networks: the ResNet backbone, the classifier behind the activation maps, IRN's two branches, and weights files."""
