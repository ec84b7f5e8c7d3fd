"""What talks to Flower; nothing else imports it."""
