BEGIN TRANSACTION;
CREATE TABLE executor_adapter_hosts (
	host_id TEXT NOT NULL, 
	machine TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	process_started BIGINT NOT NULL, 
	presence TEXT DEFAULT '' NOT NULL, 
	expires_at DOUBLE NOT NULL, 
	PRIMARY KEY (host_id)
);
INSERT INTO "executor_adapter_hosts" VALUES('01a2250b-0127-7d51-bb13-e71e7b000001','another machine',3595,327379,'',1.79591780891354441e+09);
CREATE TABLE executor_adapter_jobs (
	job_id TEXT NOT NULL, 
	queue TEXT NOT NULL, 
	job_type TEXT NOT NULL, 
	tool_name TEXT, 
	function TEXT NOT NULL, 
	status TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	crashes INTEGER NOT NULL, 
	created_at DOUBLE NOT NULL, 
	started_at DOUBLE, 
	completed_at DOUBLE, 
	retry_at DOUBLE, 
	error_code TEXT, 
	error_message TEXT, 
	traceback TEXT, 
	records_processed BIGINT, 
	progress TEXT, 
	attempts TEXT NOT NULL, 
	metadata TEXT NOT NULL, 
	priority BIGINT NOT NULL, 
	max_runtime DOUBLE, 
	call TEXT, 
	pickled BLOB, 
	host TEXT, 
	retry_of TEXT, 
	quarantined BOOLEAN NOT NULL, 
	cancel_requested BOOLEAN DEFAULT 0 NOT NULL, 
	PRIMARY KEY (job_id)
);
INSERT INTO "executor_adapter_jobs" VALUES('completed','','job',NULL,'tests.contract.stores.store_jobs:backwards','completed',1,0,1.7959178071594913e+09,1.79591780770445156e+09,1.79591780773031258e+09,NULL,NULL,NULL,NULL,NULL,NULL,'[[1, "process", 3845, 0.4425967279998986, 0.01505873399992197, null, 18460672, null, null, null, null, null]]','{"a": 1}',0,3600.0,'{"pool": "process", "function": "tests.contract.stores.store_jobs:backwards", "args": ["done"], "kwargs": {}}',NULL,'01a2250a-fe17-7d51-bb13-e71e7b000000',NULL,0,0);
INSERT INTO "executor_adapter_jobs" VALUES('failed','','job',NULL,'tests.contract.stores.store_jobs:fail','failed',2,0,1.79591780773095464e+09,1.79591780773360419e+09,1.79591780777917504e+09,NULL,'EXECUTION_ERROR','LookupError: on purpose 1',NULL,NULL,NULL,'[[1, "process", 3845, 0.01379618600003596, 0.01635133699983271, null, 19394560, null, null, "EXECUTION_ERROR", "LookupError: on purpose 1", null], [2, "process", 3845, 0.0030992879997029377, 0.005589244000020699, null, 19394560, null, null, "EXECUTION_ERROR", "LookupError: on purpose 1", null]]','{}',0,3600.0,'{"pool": "process", "retry_delay": 0.0, "retry_attempts": 1, "function": "tests.contract.stores.store_jobs:fail"}',NULL,'01a2250a-fe17-7d51-bb13-e71e7b000000',NULL,0,0);
INSERT INTO "executor_adapter_jobs" VALUES('quarantined','','job',NULL,'tests.contract.stores.store_jobs:die','failed',1,1,1.79591780778047299e+09,1.79591780778313231e+09,1.79591780780629301e+09,NULL,'WORKER_CRASHED','worker 3845 exited with code 3 while it ran the function',NULL,NULL,NULL,'[[1, "process", 3845, 0.002360659000260057, 0.022987757999999303, null, null, 3, null, "WORKER_CRASHED", "worker 3845 exited with code 3 while it ran the function", null]]','{}',0,3600.0,'{"pool": "process", "retry_attempts": 0, "retry": {"crash_attempts": 0}, "function": "tests.contract.stores.store_jobs:die"}',NULL,'01a2250a-fe17-7d51-bb13-e71e7b000000',NULL,1,0);
INSERT INTO "executor_adapter_jobs" VALUES('pending','','job',NULL,'tests.contract.stores.store_jobs:backwards','pending',0,0,1790000000.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]','{}',0,NULL,'{"function": "tests.contract.stores.store_jobs:backwards", "args": ["abc"]}',NULL,NULL,NULL,0,0);
INSERT INTO "executor_adapter_jobs" VALUES('pickled','','job',NULL,'builtins:sorted','pending',0,0,1790000001.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]','{}',0,NULL,'{}',X'4558413111AB3EE43D7235A970DB4A29F80CB3D11F6A4A8483F376D036455FBBE3AE3D7780049527000000000000008C086275696C74696E73948C06736F727465649493948F94284B014B024B039085947D9487942E',NULL,NULL,0,0);
INSERT INTO "executor_adapter_jobs" VALUES('running','','job',NULL,'tests.contract.stores.store_jobs:backwards','running',1,0,1790000002.0,1790000003.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]','{}',0,NULL,'{"function": "tests.contract.stores.store_jobs:backwards", "args": ["xyz"], "pool": "process"}',NULL,'01a2250b-0127-7d51-bb13-e71e7b000001',NULL,0,0);
CREATE TABLE executor_adapter_lines (
	job_id TEXT NOT NULL, 
	seq BIGINT NOT NULL, 
	attempt INTEGER NOT NULL, 
	at DOUBLE NOT NULL, 
	level INTEGER NOT NULL, 
	source TEXT NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (job_id, seq)
);
CREATE TABLE executor_adapter_tool_uses (
	tool_name TEXT NOT NULL, 
	host_id TEXT NOT NULL, 
	held BIGINT NOT NULL, 
	held_since DOUBLE NOT NULL, 
	waits_since DOUBLE, 
	asked_at DOUBLE NOT NULL, 
	max_concurrent BIGINT, 
	rate DOUBLE, 
	PRIMARY KEY (tool_name, host_id)
);
CREATE TABLE executor_adapter_tools (
	tool_name TEXT NOT NULL, 
	limited_by TEXT, 
	max_concurrent BIGINT, 
	rate DOUBLE, 
	burst BIGINT, 
	paused_by TEXT, 
	paused_at DOUBLE, 
	closed_until DOUBLE NOT NULL, 
	starts DOUBLE, 
	filled_at DOUBLE NOT NULL, 
	PRIMARY KEY (tool_name)
);
INSERT INTO "executor_adapter_tools" VALUES('radar',NULL,NULL,NULL,NULL,'ann@example',1.79591780793979835e+09,0.0,NULL,0.0);
CREATE TABLE executor_adapter_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT executor_adapter_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "executor_adapter_version" VALUES('0006');
CREATE INDEX executor_adapter_jobs_created ON executor_adapter_jobs (created_at, job_id);
CREATE INDEX executor_adapter_jobs_status ON executor_adapter_jobs (status, created_at, job_id);
CREATE INDEX executor_adapter_jobs_type ON executor_adapter_jobs (job_type, created_at, job_id, status);
CREATE INDEX executor_adapter_jobs_tool ON executor_adapter_jobs (tool_name, created_at, job_id, status);
CREATE INDEX executor_adapter_jobs_queue ON executor_adapter_jobs (queue, created_at, job_id, status);
CREATE INDEX executor_adapter_jobs_ended ON executor_adapter_jobs (completed_at);
CREATE INDEX executor_adapter_jobs_live ON executor_adapter_jobs (host) WHERE status IN ('pending', 'running', 'retrying');
CREATE INDEX executor_adapter_jobs_quarantined ON executor_adapter_jobs (created_at, job_id) WHERE quarantined = 1;
COMMIT;
