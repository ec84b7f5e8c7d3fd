"""How much of each class: what attacks that count stand on."""
