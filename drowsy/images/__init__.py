"""What a network looks at: folders of images, how they are prepared, scaled and checked."""
