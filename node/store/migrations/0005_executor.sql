-- What a new primary needs to go on with executions that another began.
ALTER TABLE executions
    -- The token itself: tasks that are still to be sent carry it. Gone when the execution terminates or fails.
    ADD COLUMN token text,
    ADD COLUMN wait_after_fail_seconds integer NOT NULL DEFAULT 600;
ALTER TABLE tasks_graphs ADD CONSTRAINT tasks_graphs_name_key UNIQUE (execution_key, name);
