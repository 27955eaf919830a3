package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/workers/sim"
)

// scale measures a control plane of its own with many simulated nodes. The control plane and the northbound database are
// real and processes of their own; the nodes are in this process.
func (b *bench) scale() (err error) {
	dir, err := os.MkdirTemp("", "nsscale")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	s := &scaleRun{bench: b, ctx: ctx, dir: dir}
	defer func() {
		for _, p := range s.started {
			_ = p.Process.Signal(syscall.SIGTERM)
			_ = p.Wait()
		}
	}()
	if err := s.control(); err != nil {
		return err
	}
	nodes := make(chan error, 1)
	go func() { nodes <- s.simulate() }()
	work := make(chan error, 1)
	go func() { work <- s.measure() }()
	select {
	case err = <-nodes:
		if err == nil {
			err = errors.New("the nodes ended")
		}
	case err = <-work:
	}
	cancel()
	return err
}

type scaleRun struct {
	*bench
	ctx     context.Context
	dir     string
	host    string // URL of the API
	token   string // to join with
	server  *exec.Cmd
	started []*exec.Cmd
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close() //nolint:errcheck // it was never used
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (s *scaleRun) start(out io.Writer, name string, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command(name, args...) //nolint:noctx // it is ended by signal, in order
	log, err := os.Create(filepath.Join(s.dir, filepath.Base(name)+".log"))
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = io.MultiWriter(log, out), log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.started = append([]*exec.Cmd{cmd}, s.started...)
	return cmd, nil
}

// control starts the northbound database and the control plane, and logs in.
func (s *scaleRun) control() error {
	db, sock := filepath.Join(s.dir, "nb.db"), filepath.Join(s.dir, "nb.sock")
	if out, err := exec.CommandContext(s.ctx, "ovsdb-tool", "create", db, "/usr/share/ovn/ovn-nb.ovsschema").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if _, err := s.start(io.Discard, "ovsdb-server", "--remote=punix:"+sock, "--no-chdir", "--unixctl="+filepath.Join(s.dir, "ctl"), db); err != nil {
		return err
	}
	var ports [3]int
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			return err
		}
	}
	s.token = "a-token-for-simulated-nodes"
	if err := os.WriteFile(filepath.Join(s.dir, "join"), []byte(s.token), 0o600); err != nil {
		return err
	}
	password := make(chan string, 1)
	r, w := io.Pipe()
	go func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if p, ok := strings.CutPrefix(lines.Text(), "admin password: "); ok {
				password <- p
			}
		}
	}()
	var err error
	address := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	s.server, err = s.start(w, filepath.Join(s.root, "bin/nextstack"), "serve", "--data-dir", filepath.Join(s.dir, "data"), "--listen", address(0),
		"--temporal-listen", address(1), "--ui-listen", "", "--ovn-nb", "unix:"+sock, "--join-token-file", filepath.Join(s.dir, "join"), "--debug-listen", s.profiles, "--log-level", "warn")
	if err != nil {
		return err
	}
	s.host = "http://" + address(0)
	if s.c, err = client.New(client.Config{Host: "127.0.0.1", Port: ports[0], Timeout: 120 * time.Second, Patience: time.Minute}); err != nil {
		return err
	}
	select {
	case p := <-password:
		in, err := s.c.Login(s.ctx, api.Login{User: "admin", Password: p, Hours: 24})
		if err != nil {
			return err
		}
		s.c.SetToken(in.Token)
		return nil
	case <-time.After(time.Minute):
		return errors.New("the control plane does not come up; see " + s.dir)
	}
}

func (s *scaleRun) simulate() error {
	return sim.Run(s.ctx, sim.Config{Server: s.host, JoinToken: s.token, DataDir: filepath.Join(s.dir, "agents"), Nodes: s.nodes})
}

// do sends a request and waits for its operation.
func (s *scaleRun) do(op *api.Operation, err error) error {
	if err != nil {
		return err
	}
	_, err = s.done(time.Now(), op)
	return err
}

func (s *scaleRun) measure() error {
	begun := time.Now()
	for {
		page, err := client.List[*api.Agent](s.ctx, s.c, "", client.ListOptions{PageSize: 1000})
		if err != nil {
			return err
		}
		ready := 0
		for _, a := range page.Items {
			if a.Status.Phase == api.PhaseReady {
				ready++
			}
		}
		if ready == s.nodes {
			break
		}
		if time.Since(begun) > 5*time.Minute {
			return fmt.Errorf("%d of %d nodes are ready", ready, s.nodes)
		}
		<-time.After(200 * time.Millisecond)
	}
	fmt.Printf("\n%d simulated nodes were ready after %.1f s.\n", s.nodes, time.Since(begun).Seconds())
	if err := s.base(); err != nil {
		return err
	}
	fmt.Printf("\n| VMs, by 100 clients | time | per second | CPU of nextstack per VM | list of VMs meanwhile p50 / p99 | RSS of nextstack |\n|---|---|---|---|---|---|\n")
	for _, field := range strings.Split(s.sizes, ",") {
		n, err := strconv.Atoi(field)
		if err != nil {
			return err
		}
		if err := s.burstOf(n); err != nil {
			return err
		}
	}
	return nil
}

// base makes what the VMs need: a pool on every node, an image, a network.
func (s *scaleRun) base() error {
	begun := time.Now()
	pool := &api.PoolCreate{Name: "vms", Type: api.PoolDir, Path: "/vms"}
	if err := s.do(client.Create(s.ctx, s.c, "", pool, client.Write{})); err != nil {
		return err
	}
	fmt.Printf("A pool on all of them took %.1f s.\n", time.Since(begun).Seconds())
	image := bytes.Repeat([]byte("nextstack"), 64<<10)
	up, err := s.c.Upload(s.ctx, bytes.NewReader(image), int64(len(image)), nil)
	if err != nil {
		return err
	}
	p := api.DefaultProject
	if err := s.do(client.Create(s.ctx, s.c, p, &api.ImageCreate{Name: "tiny", Format: api.FormatRaw, Upload: up.ID}, client.Write{})); err != nil {
		return err
	}
	if err := s.do(client.Create(s.ctx, s.c, p, &api.VPCCreate{Name: "net", CIDR: "10.0.0.0/8"}, client.Write{})); err != nil {
		return err
	}
	return s.do(client.Create(s.ctx, s.c, p, &api.SubnetCreate{Name: "net", VPC: "net", CIDR: "10.0.0.0/16"}, client.Write{}))
}

// burstOf creates n VMs from 100 clients, while another lists.
func (s *scaleRun) burstOf(n int) error {
	listing, stop := context.WithCancel(s.ctx)
	var lists sample
	var watch sync.WaitGroup
	watch.Go(func() {
		for listing.Err() == nil {
			t := time.Now()
			if _, err := client.List[*api.VM](listing, s.c, api.DefaultProject, client.ListOptions{PageSize: 100}); err == nil {
				lists = append(lists, time.Since(t))
			}
			select {
			case <-listing.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	cpu := cpuOf(s.server.Process.Pid)
	begun := time.Now()
	err := s.createMany(n)
	took := time.Since(begun)
	stop()
	watch.Wait()
	if err != nil {
		return err
	}
	fmt.Printf("| %d | %.1f s | %.1f | %.0f ms | %s / %s | %d MB |\n", n, took.Seconds(), float64(n)/took.Seconds(),
		(cpuOf(s.server.Process.Pid)-cpu).Seconds()*1000/float64(n), ms(lists.quantile(.5)), ms(lists.quantile(.99)), rssOf(s.server.Process.Pid)>>20)
	return nil
}

func (s *scaleRun) createMany(n int) error {
	work := make(chan int)
	errs := make(chan error, 100)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for i := range work {
				r := &api.VMCreate{
					Name: fmt.Sprintf("vm-%d-%d", n, i), VCPUs: 1, Memory: api.GiB, Image: "tiny", RootDisk: api.GiB,
					NICs: []api.NICRequest{{Subnet: "net"}},
				}
				op, err := client.Create(s.ctx, s.c, api.DefaultProject, r, client.Write{Wait: time.Minute})
				if err := s.do(op, err); err != nil {
					errs <- fmt.Errorf("vm %d: %w", i, err)
					return
				}
			}
		})
	}
	var err error
	for i := range n {
		select {
		case work <- i:
			continue
		case err = <-errs:
		case <-s.ctx.Done():
			err = s.ctx.Err()
		}
		break
	}
	close(work)
	wg.Wait()
	select {
	case late := <-errs:
		err = errors.Join(err, late)
	default:
	}
	return err
}

// cpuOf returns the processor time that a process has used.
func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// rssOf returns the resident memory of a process in bytes.
func rssOf(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
