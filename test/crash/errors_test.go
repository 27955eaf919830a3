package crash

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/test/stack"
)

// raw sends a request as it is, past the checks of the Go client, and returns the problem that came back, if any.
func (w *world) raw(t *testing.T, method, path string, body []byte, header ...string) (status int, p *problem.Document) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.URL()+path, bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+w.Token)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := w.HTTP.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // was only read
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	if resp.StatusCode < 400 {
		return resp.StatusCode, nil
	}
	require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"), "%s", answer)
	require.NoError(t, json.Unmarshal(answer, &p), "%s", answer)
	return resp.StatusCode, p
}

func encode(t *testing.T, v any) []byte {
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return b
}

// testRequests sends what cannot be. Every answer is a problem of the right kind that says what is wrong.
func testRequests(t *testing.T, w *world) {
	const in = "/v1/projects/default/"
	made, err := client.Create(t.Context(), w.Client, project, &api.PortCreate{Name: "taken", Subnet: stack.Subnet, Address: "10.1.0.77"}, client.Write{})
	require.NoError(t, err)
	w.succeed(t, made.ID)
	vm := func(change func(*api.VMCreate)) []byte {
		r := small("wrong")
		change(r)
		return encode(t, r)
	}
	long := strings.Repeat("x", 10<<20)
	type request struct {
		what, method, path string
		body               []byte
		want               problem.Kind
		says               string // in what the user gets to read
	}
	cases := []request{
		{"no vCPU", "POST", in + "vms", vm(func(r *api.VMCreate) { r.VCPUs = 0 }), problem.Invalid, "vcpus"},
		{"too many vCPUs", "POST", in + "vms", vm(func(r *api.VMCreate) { r.VCPUs = 100000 }), problem.Invalid, "vcpus"},
		{"memory in KiB", "POST", in + "vms", vm(func(r *api.VMCreate) { r.Memory = 131072 }), problem.Invalid, "memory"},
		{"negative disk", "POST", in + "vms", vm(func(r *api.VMCreate) { r.RootDisk = -1 }), problem.Invalid, "rootDisk"},
		{"no such image", "POST", in + "vms", vm(func(r *api.VMCreate) { r.Image = "gone" }), problem.NotFound, "gone"},
		{"no such pool", "POST", in + "vms", vm(func(r *api.VMCreate) { r.Pool = "gone" }), problem.NotFound, "gone"},
		{"no such subnet", "POST", in + "vms", vm(func(r *api.VMCreate) { r.NICs[0].Subnet = "gone" }), problem.NotFound, "gone"},
		{"address in use", "POST", in + "vms", vm(func(r *api.VMCreate) { r.NICs[0].Address = "10.1.0.77" }), problem.Conflict, "10.1.0.77"},
		{"address elsewhere", "POST", in + "vms", vm(func(r *api.VMCreate) { r.NICs[0].Address = "192.0.2.1" }), problem.Invalid, "192.0.2.1"},
		{"no address", "POST", in + "vms", vm(func(r *api.VMCreate) { r.NICs[0].Address = "10.1.0.999" }), problem.Invalid, "address"},
		{"no such project", "POST", "/v1/projects/gone/vms", vm(func(*api.VMCreate) {}), problem.NotFound, "gone"},
		{"name taken", "POST", in + "ports", encode(t, api.PortCreate{Name: "taken", Subnet: stack.Subnet}), problem.Conflict, "taken"},
		{"no prefix", "POST", in + "vpcs", encode(t, api.VPCCreate{Name: "wrong", CIDR: "10.2.0.0/33"}), problem.Invalid, "cidr"},
		{"host bits", "POST", in + "vpcs", encode(t, api.VPCCreate{Name: "wrong", CIDR: "10.2.3.4/16"}), problem.Invalid, "10.2.0.0/16"},
		{"words for a prefix", "POST", in + "vpcs", encode(t, api.VPCCreate{Name: "wrong", CIDR: "all of it"}), problem.Invalid, "cidr"},
		{"overlapping subnet", "POST", in + "subnets", encode(t, api.SubnetCreate{Name: "wrong", VPC: stack.VPC, CIDR: "10.1.2.0/24"}), problem.Conflict, "10.1."},
		{"subnet outside", "POST", in + "subnets", encode(t, api.SubnetCreate{Name: "wrong", VPC: stack.VPC, CIDR: "10.9.0.0/24"}), problem.Invalid, "10.9.0.0/24"},
		{"VPC in use", "DELETE", in + "vpcs/" + stack.VPC, nil, problem.InUse, stack.VPC},
		{"path with dots", "POST", in + "images", encode(t, api.ImageCreate{Name: "wrong", Format: "raw", Path: "/tmp/../etc/shadow"}), problem.Invalid, "path"},
		{"pool at the root", "POST", "/v1/pools", encode(t, api.PoolCreate{Name: "wrong", Type: "dir", Path: "/"}), problem.Invalid, "path"},
		{"no JSON", "POST", in + "vms", []byte(`{"name": "wrong", `), problem.Invalid, ""},
		{"another JSON", "POST", in + "vms", []byte(`[1, 2, 3]`), problem.Invalid, ""},
		{"words for a number", "POST", in + "vms", []byte(`{"name":"wrong","vcpus":"two","memory":33554432,"image":"blank"}`), problem.Invalid, "vcpus"},
		{"nothing", "POST", in + "vms", nil, problem.Invalid, ""},
		{"10 MB", "POST", in + "vms", []byte(`{"name": "` + long + `"}`), problem.TooLarge, ""},
		{"no such operation", "GET", "/v1/operations/" + api.NewID(), nil, problem.NotFound, ""},
	}
	for _, name := range []string{"../../etc/passwd", "..", ".", "a/b", "a%2fb", "a\x00b", "UPPER", "-a", "a-", " a", "", strings.Repeat("a", 64), "a;rm -rf", "$(id)", "ä", api.NewID()} {
		cases = append(cases, request{fmt.Sprintf("name %q", name), "POST", in + "vms", vm(func(r *api.VMCreate) { r.Name = name }), problem.Invalid, "name"})
	}
	for _, ref := range []string{"..%2F..%2Fvms", "%2e%2e", "a%00b", "..%5c..", "UPPER", url.PathEscape("$(id)")} {
		cases = append(cases, request{"reference " + ref, "DELETE", in + "vms/" + ref, nil, problem.NotFound, ""})
	}
	for _, c := range cases {
		status, p := w.raw(t, c.method, c.path, c.body)
		if p == nil {
			t.Errorf("%s: answered %d, want %s", c.what, status, c.want)
			continue
		}
		ok := p.Code == c.want || c.want == problem.NotFound && strings.HasPrefix(c.what, "reference") && p.Code == problem.Invalid
		text := p.Detail + " " + p.Fix + " " + fmt.Sprint(p.Errors)
		if !ok || p.Status != status || status != problem.TraitsOf(p.Code).Status || p.Detail == "" || !strings.Contains(text, c.says) {
			t.Errorf("%s: want %s that says %q; got %d %+v", c.what, c.want, c.says, status, p)
		}
	}
	for path, want := range map[string]problem.Kind{"/etc/shadow": problem.Forbidden, w.Path("images", "gone.raw"): problem.NotFound} {
		op, err := client.Create(t.Context(), w.Client, project, &api.ImageCreate{Name: "wrong", Format: api.FormatRaw, Path: path}, client.Write{})
		if err == nil {
			w.refused(t, op.ID, want)
		} else if problem.KindOf(err) != want {
			t.Errorf("image from %s: %v, want %s", path, err, want)
		}
	}
	for what, header := range map[string][]string{"no token": {"Authorization", ""}, "a wrong token": {"Authorization", "Bearer " + strings.Repeat("x", 40)}} {
		if status, p := w.raw(t, "GET", in+"vms", nil, header...); p == nil || p.Code != problem.Unauthenticated {
			t.Errorf("%s: %d %+v", what, status, p)
		}
	}
	w.removeAll(t, api.KindPort, "taken")
}

// testSameName has two clients ask for the same name at the same moment, again and again: one of them gets it.
func testSameName(t *testing.T, w *world) {
	const rounds = 50
	var won []string
	for i := range rounds {
		name := fmt.Sprintf("same-%02d", i)
		ask := func() (*api.Operation, error) {
			return client.Create(t.Context(), w.Client, project, &api.VPCCreate{Name: name, CIDR: "10.3.0.0/16"}, client.Write{})
		}
		kind := api.KindVPC
		if i%10 == 0 { // a VM takes part in many more claims
			kind = api.KindVM
			ask = func() (*api.Operation, error) {
				return client.Create(t.Context(), w.Client, project, small(name), client.Write{})
			}
		}
		var ops [2]*api.Operation
		var errs [2]error
		start := make(chan struct{})
		var wg sync.WaitGroup
		for j := range ops {
			wg.Go(func() {
				<-start
				ops[j], errs[j] = ask()
			})
		}
		close(start)
		wg.Wait()
		winner := 0
		if errs[0] != nil {
			winner = 1
		}
		if errs[winner] != nil || !problem.Is(errs[1-winner], problem.Conflict) {
			t.Errorf("%s %s: one should win and one meet a conflict: %v; %v", kind, name, errs[0], errs[1])
			continue
		}
		w.succeed(t, ops[winner].ID)
		op, err := w.Client.Delete(t.Context(), kind, project, name, client.Write{})
		require.NoError(t, err)
		won = append(won, op.ID)
	}
	w.succeed(t, won...)
}

// refused checks that an operation was undone with a problem of one of these kinds, and left nothing.
func (w *world) refused(t *testing.T, id string, kinds ...problem.Kind) *api.Operation {
	t.Helper()
	ops, err := w.Ended(within(t, patience), id)
	require.NoError(t, err)
	op := ops[id]
	if op.State != api.OpFailed || op.Error == nil {
		t.Fatalf("it should have failed: %s", stack.Describe(op))
	}
	ok := false
	for _, k := range kinds {
		ok = ok || op.Error.Kind == k
	}
	if !ok {
		t.Errorf("it should have failed as %v, not as %s: %s", kinds, op.Error.Kind, stack.Describe(op))
	}
	if op.Kind == api.OpVMCreate {
		running, _, err := w.Running(t.Context())
		require.NoError(t, err)
		w.consistent(t, op, running)
	}
	return op
}

// testFailures has VMs fail on the way, by what the world is like.
func testFailures(t *testing.T, w *world) {
	write := func(name string, size int64) string {
		path := w.Path("images", name)
		content := make([]byte, size)
		_, _ = rand.Read(content)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	done := func(op *api.Operation, err error) {
		t.Helper()
		require.NoError(t, err)
		w.succeed(t, op.ID)
	}
	vm := func(name, image, pool string) *api.VMCreate {
		r := small(name)
		r.Image, r.Pool = image, pool
		return r
	}
	dir := w.Path("full")
	require.NoError(t, os.Mkdir(dir, 0o755))
	_, err := w.InNode(t.Context(), "mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", dir)
	require.NoError(t, err)
	done(client.Create(t.Context(), w.Client, "", &api.PoolCreate{Name: "full", Type: api.PoolDir, Path: dir}, client.Write{}))
	done(client.Create(t.Context(), w.Client, project, &api.ImageCreate{Name: "six", Format: api.FormatRaw, Path: write("six.raw", 6<<20)}, client.Write{}))
	done(client.Create(t.Context(), w.Client, project, &api.ImageCreate{Name: "big", Format: api.FormatRaw, Path: write("big.raw", 16<<20)}, client.Write{}))

	t.Run("an image larger than the pool", func(t *testing.T) {
		op, err := client.Create(t.Context(), w.Client, project, vm("full-a", "big", "full"), client.Write{})
		require.NoError(t, err)
		w.refused(t, op.ID, problem.NoCapacity)
	})
	t.Run("disk full", func(t *testing.T) {
		// The point holds the operation when it has its place: so placement cannot know what the disk is going to be like.
		c := trial{point: stack.Point{Kind: api.OpVMCreate, Step: "disk", At: stack.Before}}
		require.NoError(t, w.Faults.Arm(c.point))
		op, err := client.Create(t.Context(), w.Client, project, vm("full-b", "six", "full"), client.Write{})
		require.NoError(t, err)
		require.NoError(t, w.Faults.Await(within(t, time.Minute), c.point))
		_, err = w.InNode(t.Context(), "dd", "if=/dev/zero", "of="+dir+"/filler", "bs=1M", "count=9")
		require.NoError(t, err)
		require.NoError(t, w.Faults.Release(c.point))
		w.refused(t, op.ID, problem.NoCapacity)
		_, err = w.InNode(t.Context(), "rm", dir+"/filler")
		require.NoError(t, err)
	})
	t.Run("the image's file is gone", func(t *testing.T) {
		image, err := client.Get[*api.Image](t.Context(), w.Client, project, "six")
		require.NoError(t, err)
		require.NoError(t, os.Remove(w.Path("control", "images", image.ID)))
		op, err := client.Create(t.Context(), w.Client, project, vm("gone-a", "six", stack.Pool), client.Write{})
		require.NoError(t, err)
		w.refused(t, op.ID, problem.NotFound)
	})
	w.removeAll(t, api.KindImage, "six", "big")
	w.removeAll(t, api.KindPool, "full")
	_, err = w.InNode(t.Context(), "umount", dir)
	require.NoError(t, err)
}

// testAgentAway asks for a VM when the only agent has just died.
func testAgentAway(t *testing.T, w *world) {
	require.NoError(t, w.Agent.Kill())
	begun := time.Now()
	op, err := client.Create(t.Context(), w.Client, project, small("away"), client.Write{})
	require.NoError(t, err)
	op = w.refused(t, op.ID, problem.Unavailable)
	if took := op.Ended.Sub(begun); took > 40*time.Second {
		t.Errorf("it took %s to see that the agent is gone", took)
	}
	started := time.Now()
	require.NoError(t, w.Agent.Start())
	require.NoError(t, w.AwaitReport(within(t, time.Minute), started))
	require.NoError(t, stack.Poll(within(t, time.Minute), 50*time.Millisecond, func() error {
		pool, err := client.Get[*api.Pool](t.Context(), w.Client, "", stack.Pool)
		if err == nil && pool.Status.Phase != api.PhaseReady {
			err = fmt.Errorf("the pool is %s: %s", pool.Status.Phase, pool.Status.Reason)
		}
		return err
	}))
	w.create(t, "away") // the name is free, and the node works
	w.remove(t, "away")
}
