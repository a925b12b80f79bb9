-- The application in the demo's story: documents of engineering projects are read by extraction jobs, people
-- review what was found, items are matched with suppliers, and drawings become map layers.
-- Nothing in here knows about Rowcast. Running it twice changes nothing.

CREATE TABLE IF NOT EXISTS projects (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code        text NOT NULL CHECK (code ~ '^[A-Z0-9-]{2,12}$'),
    name        text NOT NULL CHECK (length(btrim(name)) BETWEEN 1 AND 120),
    client      text NOT NULL DEFAULT 'Internal',
    phase       text NOT NULL DEFAULT 'tender'
                CHECK (phase IN ('tender', 'basic design', 'detailed design', 'construction')),
    documents   integer NOT NULL DEFAULT 0 CHECK (documents >= 0),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS extraction_jobs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id  bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    document    text NOT NULL,
    pages       integer NOT NULL CHECK (pages > 0),
    status      text NOT NULL DEFAULT 'queued'
                CHECK (status IN ('queued', 'running', 'completed', 'failed', 'cancelled')),
    progress    smallint NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
    worker      text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CHECK (status <> 'completed' OR progress = 100),
    CHECK (status <> 'running' OR worker IS NOT NULL)
);
CREATE INDEX IF NOT EXISTS extraction_jobs_project_id ON extraction_jobs (project_id);

CREATE TABLE IF NOT EXISTS extraction_results (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id           bigint NOT NULL REFERENCES extraction_jobs ON DELETE CASCADE,
    field            text NOT NULL,
    value            text NOT NULL CHECK (length(value) BETWEEN 1 AND 500),
    extracted_value  text NOT NULL,  -- what the job read; `value` differs from it once somebody corrected it
    page             integer NOT NULL CHECK (page > 0),
    confidence       numeric(4, 3) NOT NULL CHECK (confidence BETWEEN 0 AND 1),
    status           text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'accepted', 'corrected')),
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS extraction_results_job_id ON extraction_results (job_id);

CREATE TABLE IF NOT EXISTS supplier_matches (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id      bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    item            text NOT NULL,
    supplier        text NOT NULL,
    score           numeric(4, 1) NOT NULL CHECK (score BETWEEN 0 AND 100),
    unit_price      numeric(12, 2) CHECK (unit_price > 0),
    lead_time_days  integer CHECK (lead_time_days > 0),
    status          text NOT NULL DEFAULT 'proposed' CHECK (status IN ('proposed', 'confirmed', 'rejected')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS supplier_matches_project_id ON supplier_matches (project_id);

CREATE TABLE IF NOT EXISTS data_layers (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id  bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    name        text NOT NULL,
    geometry    text NOT NULL CHECK (geometry IN ('point', 'line', 'polygon', 'raster')),
    source      text NOT NULL,
    colour      text NOT NULL CHECK (colour ~ '^#[0-9a-f]{6}$'),
    visible     boolean NOT NULL DEFAULT true,
    features    integer NOT NULL DEFAULT 0 CHECK (features >= 0),
    version     integer NOT NULL DEFAULT 1 CHECK (version > 0),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS data_layers_project_id ON data_layers (project_id);

-- Which mutations the API has carried out: a request that is sent again with the same id runs once.
CREATE TABLE IF NOT EXISTS handled_mutations (
    mutation_id  text PRIMARY KEY,
    handled_at   timestamptz NOT NULL DEFAULT now()
);

CREATE OR REPLACE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

DO $$
DECLARE
    watched text;
BEGIN
    FOREACH watched IN ARRAY
        ARRAY['projects', 'extraction_jobs', 'extraction_results', 'supplier_matches', 'data_layers']
    LOOP
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER set_updated_at BEFORE UPDATE ON %I '
            'FOR EACH ROW EXECUTE FUNCTION set_updated_at()', watched);
    END LOOP;
END
$$;
