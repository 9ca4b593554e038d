"""Images with a class for every pixel: joint transforms, and samples of them."""
