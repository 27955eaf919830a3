package storage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// What a node of the sandbox does, it does as this test binary run again in its namespaces, where its mounts are.
const (
	sandboxEnv = "NEXTSTACK_TEST_SANDBOX" // the sandbox's directory
	nodeEnv    = "NEXTSTACK_TEST_POOLS"   // unix socket to serve pools at
)

func init() {
	if text := os.Getenv(deedEnv); text != "" { // of a node as well
		doDeed(text)
	}
	if socket := os.Getenv(nodeEnv); socket != "" {
		if err := serveNode(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// question is one call of a method of storage.Pool.
type question struct {
	Pool   steps.PoolOnNode  `json:"pool,omitzero"`
	Plan   *steps.VMPlan     `json:"plan,omitempty"`
	Image  steps.CachedImage `json:"image,omitzero"`
	File   steps.FileFound   `json:"file,omitzero"`
	Source string            `json:"source,omitempty"` // unix socket of a storage.Source

	Volume   *steps.VolumePlan   `json:"volume,omitempty"`
	Snapshot *steps.SnapshotPlan `json:"snapshot,omitempty"`
	Drop     *steps.SnapshotDrop `json:"drop,omitempty"`
	Merged   bool                `json:"merged,omitempty"`
	Revert   *steps.VolumeRevert `json:"revert,omitempty"`

	Memory *steps.MemoryFile `json:"memory,omitempty"`

	Args []string `json:"args,omitempty"` // of a program that is to run there

	Deed *deed `json:"deed,omitempty"` // that ends before its nth change
	Nth  int   `json:"nth,omitempty"`
}

type answer struct {
	Usage api.PoolUsage     `json:"usage,omitzero"`
	Files []steps.FileFound `json:"files,omitempty"`
	Told  int               `json:"told,omitempty"` // how often it was told how far it is
	Alone bool              `json:"alone,omitempty"`
	Said  string            `json:"said,omitempty"` // by a program
	Died  killed            `json:"died,omitzero"`
	Error *problem.Problem  `json:"error,omitempty"`
}

// serveNode is the node's side. It ends when its input does.
func serveNode(socket string) error {
	dir := filepath.Dir(socket)
	m := storage.NewMounts(storage.NewDir(nil), filepath.Join(dir, "mounts"), nil)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	methods := map[string]func(context.Context, question) (answer, error){
		"prepare": func(ctx context.Context, q question) (a answer, err error) {
			a.Usage, err = m.Prepare(ctx, q.Pool)
			return a, err
		},
		"list": func(ctx context.Context, q question) (a answer, err error) {
			a.Files, err = m.List(ctx, q.Pool)
			return a, err
		},
		"usage":   func(ctx context.Context, q question) (answer, error) { return answer{Usage: m.Usage(ctx, q.Pool)}, nil },
		"ready":   func(ctx context.Context, q question) (answer, error) { return answer{}, m.Ready(ctx, q.Pool) },
		"release": func(ctx context.Context, q question) (answer, error) { return answer{}, m.Release(ctx, q.Pool) },
		"remove":  func(ctx context.Context, q question) (answer, error) { return answer{}, m.Remove(ctx, q.Pool, q.File) },
		"evict":   func(ctx context.Context, q question) (answer, error) { return answer{}, m.EvictImage(ctx, q.Image) },
		"drop":    func(ctx context.Context, q question) (answer, error) { return answer{}, m.RemoveDisk(ctx, *q.Plan) },
		"create": func(ctx context.Context, q question) (a answer, err error) {
			err = m.CreateVolume(ctx, *q.Volume, farSource{over(q.Source)}, func(api.Progress) { a.Told++ })
			return a, err
		},
		"grow": func(ctx context.Context, q question) (answer, error) { return answer{}, m.GrowVolume(ctx, *q.Volume) },
		"flatten": func(ctx context.Context, q question) (a answer, err error) {
			err = m.FlattenVolume(ctx, *q.Volume, func(api.Progress) { a.Told++ })
			return a, err
		},
		"alone": func(ctx context.Context, q question) (a answer, err error) {
			a.Alone, err = m.StandsAlone(ctx, *q.Volume)
			return a, err
		},
		"delete": func(ctx context.Context, q question) (answer, error) { return answer{}, m.RemoveVolume(ctx, *q.Volume) },
		"retire": func(_ context.Context, q question) (answer, error) { return answer{}, m.RetireLayer(*q.Volume) },
		"snap": func(ctx context.Context, q question) (answer, error) {
			return answer{}, m.AddSnapshot(ctx, *q.Snapshot)
		},
		"unsnap": func(ctx context.Context, q question) (answer, error) {
			return answer{}, m.UndoSnapshot(ctx, *q.Snapshot)
		},
		"merge": func(ctx context.Context, q question) (answer, error) {
			return answer{}, m.DropSnapshot(ctx, *q.Drop, q.Merged, nil)
		},
		"check revert": func(ctx context.Context, q question) (answer, error) {
			return answer{}, m.CheckRevert(ctx, *q.Revert)
		},
		"revert":   func(ctx context.Context, q question) (answer, error) { return answer{}, m.RevertVolume(ctx, *q.Revert) },
		"unrevert": func(ctx context.Context, q question) (answer, error) { return answer{}, m.UndoRevert(ctx, *q.Revert) },
		"make": func(ctx context.Context, q question) (answer, error) {
			return answer{}, m.MakeDisk(ctx, *q.Plan, farSource{over(q.Source)}, nil)
		},
		"kill": func(_ context.Context, q question) (a answer, err error) {
			q.Deed.Dir = filepath.Join(dir, "mounts")
			b, err := json.Marshal(q.Deed)
			if err == nil {
				a.Died, err = killAt(deedEnv+"="+string(b), q.Deed.plans()[0].Pool.Path+"/", q.Nth)
			}
			return a, err
		},
		"place": func(ctx context.Context, q question) (a answer, err error) {
			if a.Said, err = m.PlaceMemory(ctx, *q.Memory, api.MiB); err != nil || !q.Memory.Seal {
				return a, err
			}
			if err = os.WriteFile(a.Said, []byte("what the guest remembers"), 0o600); err != nil {
				return a, err
			}
			if _, err = m.KeepMemory(ctx, *q.Memory, nil); !problem.Is(err, problem.NotFound) {
				return a, fmt.Errorf("it counts before it is sealed: %w", err)
			}
			if err = m.SealMemory(ctx, *q.Memory); err == nil {
				_, err = m.KeepMemory(ctx, *q.Memory, nil)
			}
			return a, errors.Join(err, m.RemoveMemory(ctx, *q.Memory))
		},
		"open": func(ctx context.Context, q question) (answer, error) {
			d, err := m.OpenVolume(ctx, *q.Volume)
			if err != nil {
				return answer{}, err
			}
			f, err := os.Create(q.Args[0])
			if err == nil {
				_, err = io.Copy(f, io.NewSectionReader(d, 0, d.Size()))
				err = errors.Join(err, f.Close())
			}
			return answer{}, errors.Join(err, d.Close())
		},
		"detach": func(_ context.Context, q question) (answer, error) { return answer{}, m.Detach(q.Pool.Path) },
		"run": func(ctx context.Context, q question) (answer, error) {
			out, err := exec.CommandContext(ctx, q.Args[0], q.Args[1:]...).CombinedOutput()
			return answer{Said: string(out)}, err
		},
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:errcheck,gosec // ends with the process
		var q question
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a, err := methods[strings.TrimPrefix(r.URL.Path, "/")](r.Context(), q)
		a.Error = problem.From(err)
		json.NewEncoder(w).Encode(a) //nolint:errcheck // whoever asked has gone
	}))
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // ends
	return nil
}

// over returns a client that speaks to a unix socket.
func over(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
}

// farSource is a storage.Source in another process.
type farSource struct{ *http.Client }

func (s farSource) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://source/"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.Do(req)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	var p problem.Problem
	return nil, errors.Join(json.NewDecoder(resp.Body).Decode(&p), &p)
}

func (s farSource) Seed(ctx context.Context, vm string) (seed api.Seed, err error) {
	resp, err := s.get(ctx, "seed/"+vm)
	if err != nil {
		return seed, err
	}
	defer resp.Body.Close()
	return seed, json.NewDecoder(resp.Body).Decode(&seed)
}

func (s farSource) OpenImage(ctx context.Context, image string) (io.ReadCloser, int64, error) {
	resp, err := s.get(ctx, "image/"+image)
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

// serveSource serves src at a unix socket until the test ends.
func serveSource(dir string, src storage.Source) (socket string, stop func(), err error) {
	socket = filepath.Join(dir, api.NewID()[:8]+".src")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if kind == "seed" {
			seed, _ := src.Seed(r.Context(), id)
			json.NewEncoder(w).Encode(seed) //nolint:errcheck // whoever asked has gone
			return
		}
		in, length, err := src.OpenImage(r.Context(), id)
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			json.NewEncoder(w).Encode(problem.From(err)) //nolint:errcheck // whoever asked has gone
			return
		}
		defer in.Close()
		w.Header().Set("Content-Length", fmt.Sprint(length))
		io.Copy(w, in) //nolint:errcheck // whoever asked has gone
	})}
	go s.Serve(l) //nolint:errcheck // ends with Close
	return socket, func() { s.Close() }, nil
}

// sandbox is one of deploy/dev/sandbox.sh.
type sandbox struct{ dir, net string }

// realServers returns the sandbox that the environment names if it has this file server, or skips the test.
func realServers(t *testing.T, daemon, what string) sandbox {
	t.Helper()
	s := sandbox{dir: os.Getenv(sandboxEnv)}
	if s.dir == "" {
		t.Skipf("SKIPPED, NOT TESTED: %s. Set %s to the directory of a sandbox of deploy/dev/sandbox.sh with nodes a and b and the server", what, sandboxEnv)
	}
	env, err := os.ReadFile(filepath.Join(s.dir, "sandbox.env"))
	require.NoError(t, err)
	s.net = strings.Fields(string(env))[1]
	if _, err := s.run("file-pid", daemon); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: %s. %s does not run in the sandbox %s", what, daemon, s.dir)
	}
	return s
}

func (s sandbox) command(args ...string) *exec.Cmd {
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "../../deploy/dev/sandbox.sh"), args...)
	cmd.Env = append(os.Environ(), "SANDBOX_DIR="+s.dir)
	return cmd
}

func (s sandbox) run(args ...string) (string, error) {
	out, err := s.command(args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (s sandbox) do(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.run(args...)
	require.NoError(t, err, "sandbox.sh %v: %s", args, out)
	return out
}

// signal sends a daemon a signal, by its PID.
func (s sandbox) signal(t *testing.T, daemon string, sig unix.Signal) {
	t.Helper()
	var pid int
	_, err := fmt.Sscan(s.do(t, "file-pid", daemon), &pid)
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, sig))
}

// farNode is a node of the sandbox, with pools where the suite thinks that directories are.
type farNode struct {
	t      *testing.T
	box    sandbox
	name   string
	dir    string // of the sockets
	client *http.Client
	kind   string // of its pools

	leaks bool // clusters that nobody uses are no fault of volumes

	mu    sync.Mutex
	first map[string]string // path at which a pool was seen first

	source func(path string) api.PoolSource // what is mounted for a directory
}

var _ storage.Pool = (*farNode)(nil)

// start starts the pools of a node, until the test ends.
func (s sandbox) start(t *testing.T, name, kind string, source func(string) api.PoolSource) *farNode {
	t.Helper()
	dir, err := os.MkdirTemp("", "nst")
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	socket := filepath.Join(dir, "node")
	cmd := s.command("exec", name, "env", nodeEnv+"="+socket, self)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		require.NoError(t, cmd.Wait())
		s.do(t, "exec", name, "sh", "-c", "for p in "+api.MountDir+"/*-*-*-*-*; do [ ! -d $p ] || { umount -l $p; rmdir $p; }; done")
		require.NoError(t, os.RemoveAll(dir))
	})
	_, err = fmt.Fscanln(out, new(string))
	require.NoError(t, err, "the node does not come up")
	return &farNode{t: t, box: s, name: name, dir: dir, client: over(socket), kind: kind, source: source}
}

func (n *farNode) ask(ctx context.Context, method string, q question) (answer, error) {
	b, err := json.Marshal(q)
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/"+method, bytes.NewReader(b))
	if err != nil {
		return answer{}, err
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return answer{}, problem.Wrap(err, problem.Unavailable, "node %s cannot be asked", n.name)
	}
	defer resp.Body.Close()
	var a answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return a, err
	}
	if a.Error != nil {
		return a, a.Error
	}
	return a, nil
}

// there is a pool where it really is. What is no path is left as it is.
func (n *farNode) there(p steps.PoolOnNode) steps.PoolOnNode {
	if strings.HasPrefix(p.Path, os.TempDir()+"/") && filepath.Clean(p.Path) == p.Path {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.first == nil {
			n.first = map[string]string{}
		}
		if n.first[p.Pool] == "" {
			n.first[p.Pool] = p.Path
		}
		p.Source = n.source(p.Path)
		if n.first[p.Pool] != p.Path { // there is one place for each pool: the same at another path is another one
			sum := sha256.Sum256([]byte(p.Pool + p.Path))
			s := hex.EncodeToString(sum[:16])
			p.Pool = s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
		}
		p.Path = filepath.Join(api.MountDir, p.Pool)
	}
	p.Type = n.kind
	return p
}

func (n *farNode) plan(plan steps.VMPlan) *steps.VMPlan {
	p := n.there(plan.Disk.OnNode())
	plan.Disk.Pool, plan.Disk.PoolPath, plan.Disk.Type, plan.Disk.Source = p.Pool, p.Path, p.Type, p.Source
	return &plan
}

func (n *farNode) Prepare(ctx context.Context, p steps.PoolOnNode) (api.PoolUsage, error) {
	a, err := n.ask(ctx, "prepare", question{Pool: n.there(p)})
	a.Usage.Pool = p.Pool
	return a.Usage, err
}

func (n *farNode) Release(ctx context.Context, p steps.PoolOnNode) error {
	_, err := n.ask(ctx, "release", question{Pool: n.there(p)})
	return err
}

func (n *farNode) Ready(ctx context.Context, p steps.PoolOnNode) error {
	_, err := n.ask(ctx, "ready", question{Pool: n.there(p)})
	return err
}

func (n *farNode) MakeDisk(ctx context.Context, plan steps.VMPlan, src storage.Source, _ func(string)) error {
	socket, stop, err := serveSource(n.dir, src)
	if err != nil {
		return err
	}
	defer stop()
	_, err = n.ask(ctx, "make", question{Plan: n.plan(plan), Source: socket})
	return err
}

func (n *farNode) RemoveDisk(ctx context.Context, plan steps.VMPlan) error {
	_, err := n.ask(ctx, "drop", question{Plan: n.plan(plan)})
	return err
}

func (n *farNode) EvictImage(ctx context.Context, c steps.CachedImage) error {
	p := n.there(c.OnNode())
	c.Pool, c.PoolPath, c.PoolType, c.PoolSource = p.Pool, p.Path, p.Type, p.Source
	_, err := n.ask(ctx, "evict", question{Image: c})
	return err
}

func (n *farNode) List(ctx context.Context, p steps.PoolOnNode) ([]steps.FileFound, error) {
	there := n.there(p)
	a, err := n.ask(ctx, "list", question{Pool: there})
	for i, f := range a.Files {
		a.Files[i].Path, a.Files[i].Pool = p.Path+strings.TrimPrefix(f.Path, there.Path), p.Pool
	}
	return a.Files, err
}

func (n *farNode) Remove(ctx context.Context, p steps.PoolOnNode, f steps.FileFound) error {
	there := n.there(p)
	if rest, ok := strings.CutPrefix(f.Path, p.Path); ok {
		f.Path = there.Path + rest
	}
	if f.Pool == p.Pool {
		f.Pool = there.Pool
	}
	_, err := n.ask(ctx, "remove", question{Pool: there, File: f})
	return err
}

func (n *farNode) Usage(ctx context.Context, p steps.PoolOnNode) api.PoolUsage {
	a, err := n.ask(ctx, "usage", question{Pool: n.there(p)})
	a.Usage.Pool = p.Pool
	if err != nil {
		return api.PoolUsage{Pool: p.Pool, Error: err.Error()}
	}
	return a.Usage
}

// OpenDisk and ReceiveDisk are for disks that go from node to node, which those of shared pools do not.
func (n *farNode) OpenDisk(context.Context, steps.VMPlan) (storage.Disk, error) {
	return nil, problem.New(problem.Unsupported, "the disks of node %s stay where they are", n.name)
}

func (n *farNode) ReceiveDisk(context.Context, steps.VMPlan, storage.Source, func(context.Context) (io.ReadCloser, error), func(api.Progress)) error {
	return problem.New(problem.Unsupported, "the disks of node %s stay where they are", n.name)
}
