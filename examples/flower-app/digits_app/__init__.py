"""Digits, learnt by a ResNet-18 in a federation."""
