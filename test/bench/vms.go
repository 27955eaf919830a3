package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

func (b *bench) request(name string) api.VMCreate {
	return api.VMCreate{
		Name: name, VCPUs: 1, Memory: 128 * api.MiB, Image: "tiny", RootDisk: api.GiB,
		NICs: []api.NICRequest{{Subnet: "demo-a"}}, SecurityGroups: []string{"web"}, Pool: cmp.Or(b.pool, b.usual), Placing: api.Placing{NodeID: b.pin},
	}
}

// create makes one VM through the API and returns how long it took until its domain ran.
func (b *bench) create(name string) (time.Duration, error) {
	start := time.Now()
	request := b.request(name)
	op, err := client.Create(b.ctx, b.c, api.DefaultProject, &request, client.Write{Wait: time.Minute})
	if err != nil {
		return 0, err
	}
	return b.done(start, op)
}

func (b *bench) done(start time.Time, op *api.Operation) (time.Duration, error) {
	var err error
	if !op.State.Ended() {
		op, err = b.c.Wait(b.ctx, op.ID, client.WaitOptions{})
	}
	took := time.Since(start)
	if err == nil && op.State != api.OpSucceeded {
		err = fmt.Errorf("operation %s: %w", op.ID, op.Error)
	}
	return took, err
}

func (b *bench) remove(name string) (time.Duration, error) {
	start := time.Now()
	op, err := b.c.Delete(b.ctx, api.KindVM, api.DefaultProject, name, client.Write{Wait: time.Minute})
	if err != nil {
		return 0, err
	}
	return b.done(start, op)
}

// script runs a bash function of bare.sh inside the node and returns the time it says it took.
func (b *bench) script(args ...string) (time.Duration, error) { return b.bash("bare.sh", args...) }

// bash runs a function of a script beside this file, likewise.
func (b *bench) bash(file string, args ...string) (time.Duration, error) {
	sandbox := filepath.Join(b.root, "deploy/dev/sandbox.sh")
	cmd := exec.CommandContext(b.ctx, sandbox, append([]string{"exec", b.node, "bash", filepath.Join(b.root, "test/bench", file)}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w: %s", file, strings.Join(args, " "), err, stderr.String())
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return time.Duration(ns), err
}

// template prepares the bare script: the very XML of a VM that NextStack made, with its image and its switch.
func (b *bench) template() error {
	if err := b.sweep(); err != nil {
		return err
	}
	if _, err := b.create("bench-template"); err != nil {
		return err
	}
	vm, err := client.Get[*api.VM](b.ctx, b.c, api.DefaultProject, "bench-template")
	if err != nil {
		return err
	}
	pool, err := client.Get[*api.Pool](b.ctx, b.c, "", vm.Spec.Pool)
	if err != nil {
		return err
	}
	image, err := client.Get[*api.Image](b.ctx, b.c, api.DefaultProject, vm.Spec.Image)
	if err != nil {
		return err
	}
	args := []string{"prepare", vm.ID, vm.Spec.NICs[0].Port, vm.Spec.NICs[0].Subnet, pool.Spec.Path, image.Status.SHA256}
	if pool.Spec.Type == api.PoolRBD {
		conf, err := b.cephConf()
		if err != nil {
			return err
		}
		args = append(args[:4], pool.Spec.Source.Name, image.Status.SHA256, conf)
	}
	_, err = b.script(args...)
	return err
}

// sweep removes what a run that was stopped has left.
func (b *bench) sweep() error {
	for vm, err := range client.All[*api.VM](b.ctx, b.c, api.DefaultProject, client.ListOptions{}) {
		if err != nil {
			return err
		}
		if strings.HasPrefix(vm.Name, "bench-") {
			if _, err := b.remove(vm.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) vms() error {
	if err := b.template(); err != nil {
		return err
	}
	before, err := b.cpu()
	if err != nil {
		return err
	}
	var oursCPU float64
	var create, bareCreate, remove, bareRemove sample
	add := func(to *sample, f func() (time.Duration, error)) error {
		d, err := f()
		*to = append(*to, d)
		return err
	}
	for i := range b.n {
		name := fmt.Sprintf("bench-%d", i)
		steps := []func() error{
			func() error { return add(&create, func() (time.Duration, error) { return b.create(name) }) },
			func() error {
				return add(&bareCreate, func() (time.Duration, error) { return b.script("create", strconv.Itoa(i)) })
			},
			func() error { return add(&remove, func() (time.Duration, error) { return b.remove(name) }) },
			func() error {
				return add(&bareRemove, func() (time.Duration, error) { return b.script("remove", strconv.Itoa(i)) })
			},
		}
		if i%2 == 1 { // take turns in going first
			steps[0], steps[1], steps[2], steps[3] = steps[1], steps[0], steps[3], steps[2]
		}
		for j, step := range steps {
			if err := step(); err != nil {
				return err
			}
			if j == 1 {
				after, err := b.cpu()
				if err != nil {
					return err
				}
				oursCPU += after - before
			}
			if j == 3 {
				if before, err = b.cpu(); err != nil {
					return err
				}
			}
		}
	}
	fmt.Printf("\n| one VM, %d times, in turns | NextStack p50 / p95 | bare script p50 / p95 | ratio at p50 | goal |\n|---|---|---|---|---|\n", b.n)
	row("create until the domain runs", create, bareCreate, "<= 1.25")
	row("delete", remove, bareRemove, "")
	fmt.Printf("\n| CPU of our processes per create | %.3f s | goal <= 0.15 s |\n|---|---|---|\n", oursCPU/float64(b.n))
	return b.sweep()
}

func (b *bench) bursts() error {
	if err := b.template(); err != nil {
		return err
	}
	parallel := func(f func(i int) (time.Duration, error)) (time.Duration, error) {
		var wg sync.WaitGroup
		errs := make(chan error, b.burst)
		start := time.Now()
		for i := range b.burst {
			wg.Go(func() {
				_, err := f(i)
				errs <- err
			})
		}
		wg.Wait()
		took := time.Since(start)
		close(errs)
		for err := range errs {
			if err != nil {
				return 0, err
			}
		}
		return took, nil
	}
	var ours, bare sample
	for range 5 {
		d, err := parallel(func(i int) (time.Duration, error) { return b.create(fmt.Sprintf("bench-%d", i)) })
		if err != nil {
			return err
		}
		ours = append(ours, d)
		if _, err := parallel(func(i int) (time.Duration, error) { return b.remove(fmt.Sprintf("bench-%d", i)) }); err != nil {
			return err
		}
		if d, err = b.script("burst", strconv.Itoa(b.burst)); err != nil {
			return err
		}
		bare = append(bare, d)
		if _, err := b.script("unburst", strconv.Itoa(b.burst)); err != nil {
			return err
		}
	}
	fmt.Printf("\n| %d VMs at once, 5 times, in turns | NextStack p50 / p95 | bare script p50 / p95 | ratio at p50 | goal |\n|---|---|---|---|---|\n", b.burst)
	row("until all domains run", ours, bare, "<= 1.3")
	return b.sweep()
}

// pids returns our processes of the sandbox.
func (b *bench) pids() (map[string]int, error) {
	out := map[string]int{}
	for _, name := range []string{"nextstack", "agent"} {
		raw, err := os.ReadFile(filepath.Join(b.root, ".dev", name+".pid"))
		if err != nil {
			return nil, err
		}
		if out[name], err = strconv.Atoi(strings.TrimSpace(string(raw))); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// cpu returns the seconds of processor time that our processes have used.
func (b *bench) cpu() (float64, error) {
	pids, err := b.pids()
	if err != nil {
		return 0, err
	}
	var ticks float64
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		for _, s := range f[11:15] { // utime, stime and those of children that have ended: qemu-img is our doing too
			t, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return 0, err
			}
			ticks += t
		}
	}
	return ticks / 100, nil // USER_HZ
}

func (b *bench) idle() error {
	pids, err := b.pids()
	if err != nil {
		return err
	}
	fmt.Printf("\n| memory when idle | RSS | PSS |\n|---|---|---|\n")
	total := 0
	for _, name := range []string{"nextstack", "agent"} {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pids[name]))
		if err != nil {
			return err
		}
		kb := map[string]int{}
		for line := range strings.Lines(string(raw)) {
			f := strings.Fields(line)
			if len(f) == 3 {
				kb[f[0]], _ = strconv.Atoi(f[1])
			}
		}
		total += kb["Pss:"]
		fmt.Printf("| %s | %d MB | %d MB |\n", name, kb["Rss:"]/1000, kb["Pss:"]/1000)
	}
	fmt.Printf("| all, goal <= 250 MB | | %d MB |\n", total/1000)
	return nil
}
