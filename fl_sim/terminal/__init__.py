"""What the command line shows, and how it names folders."""
