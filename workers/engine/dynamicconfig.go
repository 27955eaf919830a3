package engine

import (
	"time"

	"go.temporal.io/server/common/dynamicconfig"
)

// unlimited replaces rate limits that protect a shared cluster from one of its tenants. Requests per second.
const unlimited = 100_000

// longPoll is how long the server keeps a caller that waits for a workflow or an update before the caller has
// to ask again, which the SDK does by itself.
//
// The default is 20 s. But a caller that waits for the end of a workflow now and then misses the notification
// (measured: about 1 in 1000) and learns of it only when its long poll ends. This bounds the damage, at the
// price of one extra call per waiting caller in this time.
const longPoll = 2 * time.Second

// dynamicConfig is how the embedded Temporal differs from its defaults, which are made for a cluster of many
// machines on a database across the network. Here it is one process on a local file.
func dynamicConfig() dynamicconfig.StaticClient {
	return dynamicconfig.StaticClient{
		// Latency. By default the history service reads each of its task queues 20 times a second, so every hop
		// between a workflow and an activity waits 50 ms: 850 ms instead of 130 for eight activities in a row.
		dynamicconfig.TransferProcessorMaxPollRPS.Key():       unlimited,
		dynamicconfig.TransferProcessorMaxPollHostRPS.Key():   unlimited,
		dynamicconfig.TimerProcessorMaxPollRPS.Key():          unlimited,
		dynamicconfig.TimerProcessorMaxPollHostRPS.Key():      unlimited,
		dynamicconfig.VisibilityProcessorMaxPollRPS.Key():     unlimited,
		dynamicconfig.VisibilityProcessorMaxPollHostRPS.Key(): unlimited,
		dynamicconfig.OutboundProcessorMaxPollRPS.Key():       unlimited,
		dynamicconfig.OutboundProcessorMaxPollHostRPS.Key():   unlimited,
		// Partitions spread a task queue over machines. With one machine, a task that lands in a partition
		// without a poller only takes a detour. Also a quarter of the loaded task queues.
		dynamicconfig.MatchingNumTaskqueueReadPartitions.Key():  1,
		dynamicconfig.MatchingNumTaskqueueWritePartitions.Key(): 1,
		dynamicconfig.HistoryLongPollExpirationInterval.Key():   longPoll,

		// Limits. Every agent holds two long polls of each kind, and 1200 of a kind would be 600 nodes.
		dynamicconfig.FrontendMaxConcurrentLongRunningRequestsPerInstance.Key(): unlimited,
		dynamicconfig.FrontendRPS.Key():                                         unlimited,
		dynamicconfig.FrontendMaxNamespaceRPSPerInstance.Key():                  unlimited,
		// Lists of workflows: 10 per second by default, which one open UI and a CLI exceed.
		dynamicconfig.FrontendMaxNamespaceVisibilityRPSPerInstance.Key(): 500,
		dynamicconfig.MatchingRPS.Key():                                  unlimited,
		dynamicconfig.HistoryRPS.Key():                                   unlimited,

		// Memory. The cache of running workflows is by default limited to 128000 entries, whatever their size.
		dynamicconfig.HistoryCacheSizeBasedLimit.Key():        true,
		dynamicconfig.HistoryCacheHostLevelMaxSizeBytes.Key(): 16 << 20,
		// Goroutines that carry out tasks, per queue. They wait in line for the one database connection anyway.
		dynamicconfig.TransferProcessorSchedulerWorkerCount.Key():    32,
		dynamicconfig.TimerProcessorSchedulerWorkerCount.Key():       32,
		dynamicconfig.VisibilityProcessorSchedulerWorkerCount.Key():  8,
		dynamicconfig.MemoryTimerProcessorSchedulerWorkerCount.Key(): 8,
		// Replication to another cluster, which does not exist.
		dynamicconfig.ReplicationProcessorSchedulerWorkerCount.Key():            1,
		dynamicconfig.ReplicationLowPriorityProcessorSchedulerWorkerCount.Key(): 1,
		dynamicconfig.EnableReplicationStream.Key():                             false,
		// Pollers of the system workflows, which run a few times a day.
		dynamicconfig.WorkerScannerMaxConcurrentActivityTaskPollers.Key():     2,
		dynamicconfig.WorkerScannerMaxConcurrentWorkflowTaskPollers.Key():     2,
		dynamicconfig.WorkerParentCloseMaxConcurrentActivityTaskPollers.Key(): 2,
		dynamicconfig.WorkerParentCloseMaxConcurrentWorkflowTaskPollers.Key(): 2,

		// Idle CPU. Each of four services reads all namespaces every 2 s; here they change once, at the first
		// start, and that is before the services run.
		dynamicconfig.NamespaceCacheRefreshInterval.Key():         30 * time.Second,
		dynamicconfig.MatchingNexusEndpointsRefreshInterval.Key(): 5 * time.Minute,
		// Latency and error averages for a health check between machines.
		dynamicconfig.PersistenceHealthSignalAggregationEnabled.Key(): false,
		dynamicconfig.PersistenceHealthSignalMetricsEnabled.Key():     false,

		// A cloud's control plane does not report to temporal.io.
		dynamicconfig.EnableServerVersionCheck.Key(): false,
	}
}
