"""The demo's sample data: six engineering projects with what a reader of their documents has found so far.

The one rule of this room: all companies, people and places are invented, and filling a database that already
has projects changes nothing.
"""

# ruff: noqa: RUF001 - dimensions are written with a multiplication sign

from __future__ import annotations

from importlib import resources
from typing import Final

import psycopg

# One arbitrary number that two demos starting on one database agree on, so that only one of them fills it.
_PREPARE_LOCK: Final = 0x726F_7763_6173_7401

PROJECTS: Final = (
    # code, name, client, phase, documents
    ("NPS-21", "Nordhavn pumping station", "Aldermark Water", "detailed design", 214),
    ("ELX-08", "Elster crossing 380 kV", "Transnord Grid", "basic design", 96),
    ("FSU-14", "Fjordline substation upgrade", "Fjordline Energi", "construction", 388),
    ("HT4-03", "Harbour terminal 4, tank farm", "Port of Vessel", "tender", 57),
    ("LWT-11", "Lindholm water treatment", "Lindholm Municipality", "detailed design", 163),
    ("RDH-02", "Reyerau district heating", "Stadtwerke Reyerau", "basic design", 72),
)

JOBS: Final = (
    # project (index above), document, pages, status, progress, worker
    (0, "P-1042 pump data sheet, rev C.pdf", 6, "completed", 100, "reader-2"),
    (0, "Piping material take-off, area 3.xlsx", 18, "completed", 100, "reader-1"),
    (1, "Tower schedule, section B.pdf", 41, "completed", 100, "reader-3"),
    (2, "SLD-110kV-004 single line diagram.pdf", 2, "completed", 100, "reader-1"),
    (2, "Switchgear quotation, lot 2.pdf", 33, "failed", 47, "reader-2"),
    (4, "Membrane skid, vendor offer.pdf", 27, "running", 64, "reader-1"),
    (3, "Tank T-401 nozzle schedule.pdf", 4, "running", 31, "reader-3"),
    (5, "Trench cross sections, km 0 to 4.pdf", 22, "queued", 0, None),
    (1, "Soil report, boreholes 12 to 19.pdf", 58, "queued", 0, None),
    (0, "Valve list, rev 7.xlsx", 11, "cancelled", 12, "reader-2"),
)

RESULTS: Final = (
    # job (index above), field, value, page, confidence, status
    (0, "Rated flow", "420 m³/h", 2, 0.982, "accepted"),
    (0, "Rated head", "38.5 m", 2, 0.974, "accepted"),
    (0, "Motor power", "55 kW, IE4", 3, 0.931, "pending"),
    (0, "Casing material", "EN-GJS-500-7", 3, 0.867, "pending"),
    (0, "Shaft seal", "Cartridge, API 682 plan 11", 4, 0.713, "pending"),
    (1, "Pipe DN 300, total length", "1 284 m", 5, 0.956, "accepted"),
    (1, "Flange rating", "PN 16, EN 1092-1", 7, 0.942, "pending"),
    (1, "Insulation thickness", "60 mm", 12, 0.588, "pending"),
    (2, "Tower count", "37", 3, 0.991, "accepted"),
    (2, "Span, longest", "412 m", 18, 0.904, "pending"),
    (2, "Conductor", "4 × 264-AL1/34-ST1A", 22, 0.846, "pending"),
    (3, "Transformer rating", "40 MVA, ONAN/ONAF", 1, 0.968, "accepted"),
    (3, "Short-circuit current", "31.5 kA", 1, 0.927, "pending"),
    (3, "Vector group", "YNd11", 1, 0.895, "pending"),
    (5, "Permeate flow", "2 × 85 m³/h", 4, 0.953, "pending"),
    (5, "Membrane area", "3 120 m²", 9, 0.821, "pending"),
    (5, "Offer valid until", "30 September", 2, 0.641, "pending"),
    (6, "Nozzle N1", "DN 200, manway side", 1, 0.778, "pending"),
)

MATCHES: Final = (
    # project, item, supplier, score, unit price, lead time in days, status
    (0, "Centrifugal pump 420 m³/h", "Brackwater Pumps", 94.2, 18450, 84, "confirmed"),
    (0, "Centrifugal pump 420 m³/h", "Ostwald & Reyer", 88.7, 17120, 112, "proposed"),
    (0, "Gate valve DN 300 PN 16", "Baumgart Armaturen", 91.5, 1264, 28, "proposed"),
    (1, "Suspension insulator 160 kN", "Helvik Isolator", 86.1, 74, 56, "proposed"),
    (1, "Conductor 264-AL1/34-ST1A, per km", "Meridian Cable", 79.4, 5390, 70, "proposed"),
    (2, "Power transformer 40 MVA", "Tolland Transformers", 92.8, 684000, 420, "confirmed"),
    (2, "Circuit breaker 123 kV", "Nordan Switchgear", 83.3, 41250, 196, "proposed"),
    (3, "Tank level transmitter, radar", "Instrumar", 74.9, 2180, 35, "proposed"),
    (4, "Membrane module 8 inch", "Clarion Filters", 89.6, 612, 42, "proposed"),
    (5, "Pre-insulated pipe DN 250", "Varmeför AB", 68.2, 231, 49, "rejected"),
)

LAYERS: Final = (
    # project, name, geometry, source, colour, visible, features, version
    (0, "Pipe routes", "line", "MTO area 3", "#0f9d8a", True, 342, 7),
    (0, "Pump foundations", "polygon", "Civil GA, rev B", "#d97706", True, 16, 3),
    (1, "Tower positions", "point", "Tower schedule B", "#3b6fd8", True, 37, 12),
    (1, "Right of way", "polygon", "Land register", "#9467c9", True, 118, 4),
    (2, "Earthing grid", "line", "SLD-110kV-004", "#c2475b", False, 86, 5),
    (3, "Tank bunds", "polygon", "Terrain model", "#64748b", True, 9, 2),
    (4, "Aerial survey", "raster", "Flight 14 June", "#4d8f3a", False, 1, 1),
    (5, "Trench axis", "line", "Cross sections", "#b45309", True, 64, 6),
)

# What the activity generator and the extraction workers find, beyond the rows above.
MORE_DOCUMENTS: Final = (
    "Cable list, building 2.xlsx",
    "Data sheet B-207 blower.pdf",
    "Instrument index, rev 4.xlsx",
    "Inspection certificate 3.1, lot 9.pdf",
    "Isometric 6-PW-118.pdf",
    "Layout plan, level +4.20.pdf",
    "Load list, MCC 3.xlsx",
    "Offer, stainless fittings.pdf",
    "Technical specification, coating.pdf",
    "Weld log, week 23.pdf",
)
MORE_FINDINGS: Final = (
    ("Design pressure", ("10 bar(g)", "16 bar(g)", "25 bar(g)", "40 bar(g)")),
    ("Design temperature", ("-20 / 60 °C", "0 / 95 °C", "-10 / 120 °C")),
    ("Corrosion allowance", ("1 mm", "1.5 mm", "3 mm")),
    ("Cable cross section", ("4 × 25 mm²", "4 × 95 mm²", "3 × 240 mm²")),
    ("Coating system", ("C5-M, 320 µm", "C4-H, 240 µm", "Hot-dip galvanised")),
    ("Weight, empty", ("1 240 kg", "3 815 kg", "12.6 t")),
    ("Protection class", ("IP55", "IP65", "IP66 / IP68")),
    ("Delivery term", ("DAP site", "FCA works", "CIP nearest port")),
    ("Noise level", ("78 dB(A)", "82 dB(A)", "below 85 dB(A)")),
    ("Test certificate", ("EN 10204, 3.1", "EN 10204, 3.2", "EN 10204, 2.2")),
)
MORE_ITEMS: Final = (
    ("Butterfly valve DN 400", "Baumgart Armaturen", 1890, 35),
    ("Cable tray 300 × 60", "Meridian Cable", 41, 14),
    ("Frequency converter 55 kW", "Tolland Drives", 4320, 42),
    ("Pressure transmitter 0 to 16 bar", "Instrumar", 486, 21),
    ("Surge arrester 123 kV", "Helvik Isolator", 1740, 91),
    ("UV reactor 90 m³/h", "Clarion Filters", 22800, 77),
    ("Expansion joint DN 250", "Varmeför AB", 735, 30),
    ("Dosing pump 120 l/h", "Brackwater Pumps", 2960, 28),
)
WORKERS: Final = ("reader-1", "reader-2", "reader-3")


async def prepare(dsn: str) -> None:
    """Create the demo's tables where they are missing, and the sample rows where there is no project yet.

    Raises:
        psycopg.Error: The database cannot be reached, or its user may not create tables.
    """
    schema = (resources.files("rowcast.demo") / "schema.sql").read_bytes()
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_PREPARE_LOCK,))
        await connection.execute(schema)
        await connection.execute("DELETE FROM handled_mutations WHERE handled_at < now() - interval '1 day'")
        present = await (await connection.execute("SELECT EXISTS (SELECT FROM projects)")).fetchone()
        if present == (False,):
            await _fill(connection)


async def _fill(connection: psycopg.AsyncConnection) -> None:
    projects = [
        await _insert(
            connection,
            "INSERT INTO projects (code, name, client, phase, documents) VALUES (%s, %s, %s, %s, %s) RETURNING id",
            row,
        )
        for row in PROJECTS
    ]
    jobs = [
        await _insert(
            connection,
            "INSERT INTO extraction_jobs (project_id, document, pages, status, progress, worker)"
            " VALUES (%s, %s, %s, %s, %s, %s) RETURNING id",
            (projects[project], *rest),
        )
        for project, *rest in JOBS
    ]
    for job, field, value, page, confidence, status in RESULTS:
        await connection.execute(
            "INSERT INTO extraction_results (job_id, field, value, extracted_value, page, confidence, status)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (jobs[job], field, value, value, page, confidence, status),
        )
    for project, *rest in MATCHES:
        await connection.execute(
            "INSERT INTO supplier_matches (project_id, item, supplier, score, unit_price, lead_time_days, status)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (projects[project], *rest),
        )
    for project, *rest in LAYERS:
        await connection.execute(
            "INSERT INTO data_layers (project_id, name, geometry, source, colour, visible, features, version)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (projects[project], *rest),
        )


async def _insert(connection: psycopg.AsyncConnection, statement: str, row: tuple[object, ...]) -> int:
    (key,) = await anext(aiter(await connection.execute(statement.encode(), row)))
    return int(key)
