"""What the recipes share: arguments, the loop, optimisers, distributed helpers, contrastive parts, evaluation."""
