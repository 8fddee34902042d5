-- The roles of one team for a store in PostgreSQL, with no more rights than they need. Run it as the database's owner:
--
--     psql --set team=radar --file deployments/postgresql/roles.sql DATABASE
--
-- radar_owner   creates and upgrades the tables: for `executor-adapter jobs list` once after an upgrade, and nothing else
-- radar_jobs    reads and writes rows: for programs with jobs, and for the command line
--
-- Both see the team's own schema alone, so several teams may share a database. Set their passwords with \password.
\set ON_ERROR_STOP on
\set owner :team _owner
\set jobs :team _jobs

BEGIN;
CREATE ROLE :"owner" LOGIN;
CREATE ROLE :"jobs" LOGIN;
CREATE SCHEMA :"team" AUTHORIZATION :"owner";
GRANT USAGE ON SCHEMA :"team" TO :"jobs";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA :"team" GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"jobs";
ALTER ROLE :"owner" SET search_path = :"team";
ALTER ROLE :"jobs" SET search_path = :"team";
COMMIT;
