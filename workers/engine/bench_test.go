package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
)

// figures is what a process that runs an engine measures of itself.
type figures struct {
	Ready, Accepted time.Duration // since main
	Median, Worst   time.Duration // of one workflow with one activity
	PerSecond       float64       // such workflows, 50 at a time
	Idle, Load      map[string]int64
	IdleCPU         float64 // share of one core
	Goroutines      int
}

// BenchmarkReady starts a process with everything embedded and prints its time to ready, its memory and CPU
// when idle, and its latency and memory with 50 workflows at a time. GOGC and GOMEMLIMIT pass through:
//
//	GOMEMLIMIT=110MiB go test ./workers/engine -run '^$' -bench Ready -benchtime 1x
func BenchmarkReady(b *testing.B) {
	// A copy, because this process runs the same executable, and the pages that both have touched would count
	// only half for each.
	image, err := os.ReadFile(os.Args[0])
	require.NoError(b, err)
	path := filepath.Join(b.TempDir(), "child")
	require.NoError(b, os.WriteFile(path, image, 0o700))

	var f figures
	for b.Loop() {
		child := exec.Command(path)
		child.Env = append(os.Environ(), "ENGINE_TEST_CHILD=ready", "ENGINE_TEST_DIR="+b.TempDir())
		child.Stderr = os.Stderr
		out, err := child.Output()
		require.NoError(b, err)
		require.NoError(b, json.Unmarshal(out, &f), "%s", out)
	}
	const mib = 1 << 20
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(f.Ready.Seconds()*1e3, "ms-ready")
	b.ReportMetric(f.Accepted.Seconds()*1e3, "ms-accepted")
	b.ReportMetric(f.Median.Seconds()*1e3, "ms-wf-median")
	b.ReportMetric(f.Worst.Seconds()*1e3, "ms-wf-worst")
	b.ReportMetric(f.PerSecond, "wf/s")
	b.ReportMetric(float64(f.Idle["Pss"])/mib, "MiB-idle-pss")
	b.ReportMetric(float64(f.Idle["Anonymous"])/mib, "MiB-idle-anon")
	b.ReportMetric(float64(f.Load["Pss"])/mib, "MiB-load-pss")
	b.ReportMetric(float64(f.Load["Anonymous"])/mib, "MiB-load-anon")
	b.ReportMetric(f.IdleCPU*100, "%cpu-idle")
	b.ReportMetric(float64(f.Goroutines), "goroutines")
}

// readyChild is the measured process.
func readyChild() {
	begin := time.Now()
	must := func(err error) {
		if err != nil {
			fmt.Println("child failed:", err)
			os.Exit(1)
		}
	}
	var f figures
	ctx := context.Background()
	e, err := Start(ctx, Config{DataDir: os.Getenv("ENGINE_TEST_DIR"), UIListen: "127.0.0.1:0"})
	must(err)
	f.Ready = time.Since(begin)
	first, err := e.Temporal().ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "first", TaskQueue: queue}, greet, "x")
	must(err)
	f.Accepted = time.Since(begin)
	w := worker.New(e.Temporal(), queue, worker.Options{})
	w.RegisterWorkflow(greet)
	w.RegisterActivityWithOptions(hello, activity.RegisterOptions{Name: "hello"})
	must(w.Start())
	must(first.Get(ctx, nil))

	// Idle: what a start leaves behind has settled after some seconds; then the CPU of the rest.
	time.Sleep(10 * time.Second)
	f.Idle, f.Goroutines = memory(must), runtime.NumGoroutine()
	cpu, since := cpuTime(must), time.Now()
	time.Sleep(20 * time.Second)
	f.IdleCPU = float64(cpuTime(must)-cpu) / float64(time.Since(since))

	one := func(id string) time.Duration {
		begin := time.Now()
		r, err := e.Temporal().ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: id, TaskQueue: queue}, greet, "x")
		must(err)
		must(r.Get(ctx, nil))
		return time.Since(begin)
	}
	var took []time.Duration
	for i := range 200 {
		took = append(took, one(fmt.Sprint("one-", i)))
	}
	slices.Sort(took)
	f.Median, f.Worst = took[len(took)/2], took[len(took)-1]

	const at, each = 50, 20
	begin = time.Now()
	var wg sync.WaitGroup
	for i := range at {
		wg.Go(func() {
			for j := range each {
				one(fmt.Sprint("many-", i, "-", j))
			}
		})
	}
	wg.Wait()
	f.PerSecond = at * each / time.Since(begin).Seconds()
	f.Load = memory(must)

	w.Stop()
	must(e.Stop(ctx))
	must(json.NewEncoder(os.Stdout).Encode(f))
	os.Exit(0)
}

// memory is the memory of this process, in bytes, by kind.
func memory(must func(error)) map[string]int64 {
	file, err := os.Open("/proc/self/smaps_rollup")
	must(err)
	defer file.Close()
	out := map[string]int64{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var kib int64
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok {
			if _, err := fmt.Sscanf(value, "%d kB", &kib); err == nil {
				out[key] = kib << 10
			}
		}
	}
	return out
}

func cpuTime(must func(error)) time.Duration {
	var u syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
