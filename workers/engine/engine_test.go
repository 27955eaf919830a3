package engine

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"go.uber.org/zap"
)

const queue = "engine-test"

// TestMain lets the test binary also be the process that is killed, and the one that is measured.
func TestMain(m *testing.M) {
	switch os.Getenv("ENGINE_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "crash":
		crashChild()
	case "ready":
		readyChild()
	}
}

func greet(ctx workflow.Context, name string) (string, error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 10 * time.Second})
	var out string
	err := workflow.ExecuteActivity(ctx, "hello", name).Get(ctx, &out)
	return out, err
}

// slowUpdate answers an update after more than the server's long poll.
func slowUpdate(ctx workflow.Context) error {
	var done bool
	err := workflow.SetUpdateHandler(ctx, "slow", func(ctx workflow.Context) (string, error) {
		defer func() { done = true }()
		return "answer", workflow.Sleep(ctx, longPoll+time.Second)
	})
	if err != nil {
		return err
	}
	return workflow.Await(ctx, func() bool { return done })
}

func hello(_ context.Context, name string) (string, error) { return "hello " + name, nil }

func startWorker(t *testing.T, c client.Client) worker.Worker {
	t.Helper()
	w := worker.New(c, queue, worker.Options{})
	w.RegisterWorkflow(greet)
	w.RegisterWorkflow(slowUpdate)
	w.RegisterActivityWithOptions(hello, activity.RegisterOptions{Name: "hello"})
	require.NoError(t, w.Start())
	return w
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(writer{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type writer struct{ t testing.TB }

func (w writer) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// records keeps what was logged, for tests of the log and for engines that log after the test.
type records struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *records) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

func (r *records) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func start(t *testing.T, cfg Config) (*Engine, *records) {
	t.Helper()
	log := &records{}
	if cfg.Logger == nil {
		cfg.Logger = log.logger()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	e, err := Start(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		stop(t, e)
		if t.Failed() {
			t.Logf("log of the engine:\n%s", log)
		}
	})
	return e, log
}

func stop(t *testing.T, e *Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	require.NoError(t, e.Stop(ctx))
}

func run(t *testing.T, c client.Client, id, name string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: id, TaskQueue: queue}, greet, name)
	require.NoError(t, err)
	var out string
	require.NoError(t, r.Get(ctx, &out))
	return out
}

func TestStopAndStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "odd name?%41#") // must survive SQLite's URIs
	e, log := start(t, Config{DataDir: dir, UIListen: "127.0.0.1:0"})
	ctx := t.Context()

	w := startWorker(t, e.Temporal())
	require.Equal(t, "hello world", run(t, e.Temporal(), "first", "world"))
	_, err := e.Etcd().Put(ctx, "/k", "v")
	require.NoError(t, err)

	ns, err := e.Temporal().WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: e.Namespace()})
	require.NoError(t, err)
	require.Equal(t, DefaultNamespace, ns.NamespaceInfo.Name)
	require.Equal(t, Retention, ns.Config.WorkflowExecutionRetentionTtl.AsDuration())

	checkUI(t, e)

	_, err = Start(ctx, Config{DataDir: dir, Logger: testLogger(t)})
	require.ErrorIs(t, err, ErrDataDirInUse)
	require.ErrorContains(t, err, dir)

	w.Stop()
	begin := time.Now()
	stop(t, e)
	t.Logf("stop took %v", time.Since(begin).Round(time.Millisecond))
	for _, db := range []string{"temporal.db", "visibility.db"} {
		wal, err := os.Stat(filepath.Join(dir, "temporal", db+"-wal"))
		require.True(t, err != nil || wal.Size() == 0, "after a clean stop the database files are all there is to copy")
	}
	require.Empty(t, log.String(), "a start, a workflow and a stop are nothing to warn about")

	e, _ = start(t, Config{DataDir: dir})
	got, err := e.Etcd().Get(ctx, "/k")
	require.NoError(t, err)
	require.Len(t, got.Kvs, 1)
	var out string
	require.NoError(t, e.Temporal().GetWorkflow(ctx, "first", "").Get(ctx, &out))
	require.Equal(t, "hello world", out)
	require.Contains(t, listed(t, e.Temporal(), "WorkflowType = 'greet'"), "first", "the list of workflows outlives a stop, too")
	w = startWorker(t, e.Temporal())
	defer w.Stop()
	require.Equal(t, "hello again", run(t, e.Temporal(), "second", "again"))
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		require.ElementsMatch(t, []string{"first", "second"}, listed(t, e.Temporal(), "ExecutionStatus = 'Completed' AND ExecutionTime > '2020-01-01T00:00:00Z'"))
	}, 10*time.Second, 50*time.Millisecond)
}

// listed returns the IDs of the workflows that the UI would show for a query.
func listed(t require.TestingT, c client.Client, query string) (ids []string) {
	all, err := c.ListWorkflow(context.Background(), &workflowservice.ListWorkflowExecutionsRequest{Query: query})
	require.NoError(t, err)
	for _, w := range all.Executions {
		ids = append(ids, w.Execution.WorkflowId)
	}
	return ids
}

func checkUI(t *testing.T, e *Engine) {
	t.Helper()
	get := func(path string) string {
		resp, err := http.Get(e.UIURL() + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s: %s", path, body)
		return string(body)
	}
	require.Contains(t, get("/"), "<html")
	var settings struct{ DefaultNamespace string }
	require.NoError(t, json.Unmarshal([]byte(get("/api/v1/settings")), &settings))
	require.Equal(t, e.Namespace(), settings.DefaultNamespace)
	require.Contains(t, get("/api/v1/namespaces/"+e.Namespace()+"/workflows/first"), "greet")

	resp, err := http.Post(e.UIURL()+"/api/v1/namespaces/"+e.Namespace()+"/workflows/first/terminate", "application/json", strings.NewReader("{}"))
	require.NoError(t, err)
	defer resp.Body.Close()
	require.GreaterOrEqual(t, resp.StatusCode, 400, "a request from another site must be refused")
	require.NotEqual(t, http.StatusNotFound, resp.StatusCode)
}

func TestExternal(t *testing.T) {
	a, _ := start(t, Config{DataDir: t.TempDir()})
	b, _ := start(t, Config{EtcdEndpoints: a.EtcdEndpoints(), TemporalAddress: a.TemporalAddress(), Namespace: "other"})
	ctx := t.Context()

	watch := a.Etcd().Watch(ctx, "/from-b")
	_, err := b.Etcd().Put(ctx, "/from-b", "1")
	require.NoError(t, err)
	require.Equal(t, "1", string((<-watch).Events[0].Kv.Value))

	_, err = a.Temporal().WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: "other"})
	require.NoError(t, err)
	require.Equal(t, a.TemporalAddress(), b.TemporalAddress())
	require.Empty(t, b.UIURL())

	// A second embedded engine beside the first, on its own directory and ports.
	c, _ := start(t, Config{DataDir: t.TempDir()})
	require.NotEqual(t, a.TemporalAddress(), c.TemporalAddress())
	w := startWorker(t, c.Temporal())
	defer w.Stop()
	require.Equal(t, "hello c", run(t, c.Temporal(), "c", "c"))
	_, err = a.Temporal().DescribeWorkflowExecution(ctx, "c", "")
	require.Error(t, err, "what c runs is not in a")
}

// A caller that waits longer than one long poll must not notice where one ends and the next begins.
func TestUpdateOutlivesLongPoll(t *testing.T) {
	e, log := start(t, Config{DataDir: t.TempDir()})
	w := startWorker(t, e.Temporal())
	defer w.Stop()
	h, err := e.Temporal().UpdateWithStartWorkflow(t.Context(), client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: e.Temporal().NewWithStartWorkflowOperation(client.StartWorkflowOptions{
			ID: "slow", TaskQueue: queue, WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		}, slowUpdate),
		UpdateOptions: client.UpdateWorkflowOptions{UpdateName: "slow", WaitForStage: client.WorkflowUpdateStageCompleted},
	})
	require.NoError(t, err)
	var out string
	require.NoError(t, h.Get(t.Context(), &out))
	require.Equal(t, "answer", out)
	require.Empty(t, log.String())
}

func TestStopIsBounded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	forever := make(chan struct{})
	defer close(forever)
	err := bounded(ctx, "something", func() error { <-forever; return nil })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "something is still stopping")
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() }) // not defer: the subtests go on after this function
	taken := l.Addr().String()

	for name, cfg := range map[string]Config{
		"etcd":     {EtcdListen: taken},
		"temporal": {TemporalListen: taken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg.DataDir = t.TempDir()
			cfg.Logger = (&records{}).logger()
			_, err := Start(t.Context(), cfg)
			require.ErrorIs(t, err, syscall.EADDRINUSE)
			require.ErrorContains(t, err, taken)
			require.ErrorContains(t, err, "choose another address")
		})
	}
	t.Run("ui is not fatal", func(t *testing.T) {
		t.Parallel()
		e, log := start(t, Config{DataDir: t.TempDir(), UIListen: taken})
		require.Empty(t, e.UIURL())
		require.Contains(t, log.String(), "THE TEMPORAL UI IS NOT RUNNING")
		require.Contains(t, log.String(), "level=ERROR")
	})
}

func TestExternalTemporalComesLater(t *testing.T) {
	free, err := freePorts(t.Context(), 1)
	require.NoError(t, err)
	address := free[0].String()

	begin := time.Now()
	e, log := start(t, Config{DataDir: t.TempDir(), TemporalAddress: address})
	require.Less(t, time.Since(begin), 4*time.Second)
	require.Contains(t, log.String(), "wait for it")

	_, err = e.Etcd().Put(t.Context(), "/accepted", "op")
	require.NoError(t, err, "state works without Temporal")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = e.Temporal().ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "x", TaskQueue: queue}, greet, "x")
	require.Error(t, err)

	// Temporal comes up, in a namespace of its own, so that ours has to be created.
	start(t, Config{DataDir: t.TempDir(), TemporalListen: address, Namespace: "theirs"})
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := e.Temporal().ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "x", TaskQueue: queue}, greet, "x")
		require.NoError(t, err)
	}, 20*time.Second, 100*time.Millisecond)
}

func TestStartRefuses(t *testing.T) {
	log := (&records{}).logger()
	_, err := Start(t.Context(), Config{Logger: log})
	require.ErrorContains(t, err, "set a data directory")

	_, err = Start(t.Context(), Config{DataDir: t.TempDir(), TemporalAddress: "no-port", Logger: log})
	require.ErrorContains(t, err, "host:port")

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = Start(ctx, Config{EtcdEndpoints: []string{"127.0.0.1:1"}, TemporalAddress: "127.0.0.1:1", Logger: log})
	require.ErrorContains(t, err, "does not answer")
}

func TestSchemaOfAnotherVersion(t *testing.T) {
	dbs := databasesIn(t.TempDir())
	require.NoError(t, prepareSQLite(t.Context(), dbs, clusterName, "n"))
	require.NoError(t, prepareSQLite(t.Context(), dbs, clusterName, "n"), "a second start finds everything there")
	require.NoError(t, withSQLite(dbs.list, func(db *sql.DB) error {
		var left int
		err := db.QueryRow("SELECT count(*) FROM sqlite_master WHERE type = 'index' AND tbl_name = 'executions_visibility' AND sql IS NOT NULL").Scan(&left)
		require.Equal(t, len(usedIndexes), left, "Temporal has renamed an index")
		return err
	}))
	require.NoError(t, withSQLite(dbs.history, func(db *sql.DB) error {
		_, err := db.Exec("PRAGMA user_version = 7")
		return err
	}))
	require.ErrorContains(t, prepareSQLite(t.Context(), dbs, clusterName, "n"), "schema version 7")
}

func TestFailedStartLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("caller is gone")
	cancel(gone)
	_, err := Start(ctx, Config{DataDir: dir, Logger: (&records{}).logger()})
	require.Error(t, err)
	start(t, Config{DataDir: dir})
}

// TestWhoAsksTooEarlyIsNoWarning: the parts of Temporal start at once, and on a busy machine one asks another before it is up.
func TestWhoAsksTooEarlyIsNoWarning(t *testing.T) {
	log := &records{}
	z := newZap(log.logger(), "temporal", new(atomic.Bool))
	z.Error("service failures", zap.Error(errors.New("Frontend is not healthy yet")))
	z.Error("Queue reader unable to retrieve tasks", zap.Error(errors.New("shard status unknown")))
	require.Empty(t, log.String())
	z.Error("service failures", zap.Error(errors.New("something else")))
	require.Contains(t, log.String(), "something else")
}
