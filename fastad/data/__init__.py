"""What reports ship with: the paper's tables as it printed them (each file names its source), and the page's style."""
