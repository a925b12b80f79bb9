"""Prometheus metrics, read off the running service when they are asked for.

The one rule of this room: nothing is counted for its own sake on the hot path; what the rooms keep anyway is turned
into metrics at the scrape. Names have units; labels hold channels, reasons and codes, never data or credentials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from rowcast.server.service import Service


def render(service: Service) -> bytes:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_ServiceCollector(service))
    return generate_latest(registry)


class _ServiceCollector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        service = self._service
        status = service.capture.status
        live = service.state.state == "live"
        yield _gauge(
            "rowcast_live", "1 while changes are delivered as they are committed, else 0.", float(live)
        )
        yield _gauge("rowcast_connections", "Open client connections.", len(service.connections))
        yield _gauge(
            "rowcast_slow_connections", "Connections whose queue went over its bound.", len(service.slow)
        )
        queued = sum(connection.queued_bytes for connection in service.connections)
        yield _gauge("rowcast_queued_bytes", "Bytes that wait for clients to read them.", queued)
        yield _counter(
            "rowcast_closed_connections", "Connections that the server closed.", "code", service.closes
        )
        yield _counter("rowcast_errors", "Error frames sent.", "code", service.errors)
        yield CounterMetricFamily(
            "rowcast_capture_reconnects", "Connections to PostgreSQL made again.", value=status.reconnects
        )
        if status.lag_bytes is not None:
            yield _gauge("rowcast_capture_lag_bytes", "WAL that was not delivered yet.", status.lag_bytes)
        if status.lag_seconds is not None:
            yield _gauge(
                "rowcast_capture_lag_seconds",
                "Age of the last transaction when it was delivered.",
                status.lag_seconds,
            )
        if service.ready:
            yield from self._of_the_hub()

    def _of_the_hub(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        hub, snapshots = self._service.hub, self._service.snapshots
        subscriptions = sum(len(subscriber.subscriptions) for subscriber in hub.subscribers)
        yield _gauge("rowcast_subscriptions", "Subscriptions of all connections.", subscriptions)
        yield _gauge(
            "rowcast_shapes", "Different tables, columns and filters that are watched.", hub.shape_count
        )
        yield _gauge(
            "rowcast_audiences", "Groups of connections that share the same bytes.", hub.audience_count
        )
        yield CounterMetricFamily("rowcast_transactions", "Transactions taken in.", value=hub.transactions)
        yield CounterMetricFamily("rowcast_changes", "Changed rows taken in.", value=hub.changes)
        yield _counter("rowcast_deliveries", "Changes written to connections.", "channel", hub.deliveries)
        yield _counter("rowcast_resyncs", "Subscriptions told to read anew.", "reason", hub.resyncs)
        yield _gauge("rowcast_log_bytes", "What the replay log holds.", hub.log.size_bytes)
        yield CounterMetricFamily(
            "rowcast_snapshots", "Snapshots read from the database.", value=snapshots.taken
        )
        yield CounterMetricFamily(
            "rowcast_snapshot_seconds", "Time that reading snapshots took.", value=snapshots.seconds
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(
    name: str, text: str, label: str, values: Mapping[str, int] | Mapping[int, int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], value)
    return family
