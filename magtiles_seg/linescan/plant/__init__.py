"""Doors to the plant: MQTT, OPC UA and Modbus receivers, and Prometheus, for a running stream."""
