"""The ground floor: what every part reports about itself."""
