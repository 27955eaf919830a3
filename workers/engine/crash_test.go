package engine

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

const (
	crashTimer = 4 * time.Second // long enough to be pending at the kill, short enough for a test
	hang       = "ENGINE_TEST_HANG"
)

// crashFlow waits for a timer and for an activity that is running when the process dies.
func crashFlow(ctx workflow.Context) (string, error) {
	timer := workflow.NewTimer(ctx, crashTimer)
	actx := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: time.Minute,
		HeartbeatTimeout:    2 * time.Second, // how the server finds out that the worker is gone
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: 100 * time.Millisecond},
	})
	var who string
	if err := workflow.ExecuteActivity(actx, crashActivity).Get(ctx, &who); err != nil {
		return "", err
	}
	return who, timer.Get(ctx, nil)
}

func crashActivity(ctx context.Context) (string, error) {
	if os.Getenv(hang) != "" {
		fmt.Println("activity running")
		<-ctx.Done() // never: the process is killed
	}
	return fmt.Sprint("finished by process ", os.Getpid()), nil
}

func crashWorker(c client.Client) (worker.Worker, error) {
	w := worker.New(c, queue, worker.Options{})
	w.RegisterWorkflow(crashFlow)
	w.RegisterActivity(crashActivity)
	return w, w.Start()
}

// crashChild runs an engine and a worker until it is killed.
func crashChild() {
	fail := func(err error) {
		if err != nil {
			fmt.Println("child failed:", err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	e, err := Start(ctx, Config{DataDir: os.Getenv("ENGINE_TEST_DIR"), TemporalListen: os.Getenv("ENGINE_TEST_LISTEN")})
	fail(err)
	_, err = e.Etcd().Put(ctx, "/crash", "written")
	fail(err)
	_, err = crashWorker(e.Temporal())
	fail(err)
	select {}
}

func TestKill9(t *testing.T) {
	dir := t.TempDir()
	free, err := freePorts(t.Context(), 1)
	require.NoError(t, err)
	listen := free[0].String()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()

	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "ENGINE_TEST_CHILD=crash", hang+"=1", "ENGINE_TEST_DIR="+dir, "ENGINE_TEST_LISTEN="+listen)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	defer func() { _ = child.Process.Kill() }()

	// This client stands for an agent: it is there before the server, and stays while the server is replaced.
	agent, err := newClient(listen, Config{Namespace: DefaultNamespace, Logger: testLogger(t)})
	require.NoError(t, err)
	defer agent.Close()
	var started client.WorkflowRun
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		started, err = agent.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "crash", TaskQueue: queue}, crashFlow)
		require.NoError(t, err)
	}, 20*time.Second, 20*time.Millisecond)
	begin := time.Now()

	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	require.Equal(t, "activity running", lines.Text())
	require.NoError(t, child.Process.Kill())
	killed := time.Now()

	// At once, on the same directory and port, with the corpse still warm.
	e, log := start(t, Config{DataDir: dir, TemporalListen: listen})
	t.Logf("ready %v after the kill", time.Since(killed).Round(time.Millisecond))
	require.Error(t, child.Wait())
	w, err := crashWorker(e.Temporal())
	require.NoError(t, err)
	defer w.Stop()

	got, err := e.Etcd().Get(ctx, "/crash")
	require.NoError(t, err)
	require.Len(t, got.Kvs, 1)

	var result string
	require.NoError(t, agent.GetWorkflow(ctx, "crash", started.GetRunID()).Get(ctx, &result))
	require.Equal(t, fmt.Sprint("finished by process ", os.Getpid()), result)
	require.GreaterOrEqual(t, time.Since(begin), crashTimer)
	t.Logf("workflow closed %v after the kill", time.Since(killed).Round(time.Millisecond))
	require.False(t, strings.Contains(log.String(), "level=ERROR"), "log:\n%s", log)
}
