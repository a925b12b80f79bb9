-- Without CASCADE: what somebody else has put into the schema stops this, and says so.

DROP FUNCTION rowcast.grant_to(regrole);
DROP FUNCTION rowcast.unwatch(name, regclass);
DROP FUNCTION rowcast.watch(name, regclass, boolean);
DROP FUNCTION rowcast.publish(name);
DROP FUNCTION rowcast.unpublish(name);
DROP FUNCTION rowcast.confirm(text);
DROP TABLE rowcast.replica_identity, rowcast.watched, rowcast.incarnation, rowcast.migration;
DROP SCHEMA rowcast;
