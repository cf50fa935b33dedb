"""From a user and the models to an ordered list; knows no Kafka."""
