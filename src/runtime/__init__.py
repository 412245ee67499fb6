"""Where the job runs: devices and ranks, the launcher, logging, storage, framework versions."""
