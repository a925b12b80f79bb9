DROP FUNCTION rowcast.purge_mutations(interval, integer);
DROP FUNCTION rowcast.mutation_status(text);
DROP FUNCTION rowcast.settle_mutation(text, jsonb);
DROP FUNCTION rowcast.claim_mutation(text);
DROP TABLE rowcast.mutation;
