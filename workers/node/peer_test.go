package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var noLog = slog.New(slog.DiscardHandler)

func newPeer(t *testing.T, listen string) *peers {
	p := newPeers(listen, "", "http://127.0.0.1:8899", noLog)
	t.Cleanup(p.close)
	return p
}

// endless is a disk that says where its reader is, and waits there.
type endless struct {
	size int64
	read func(at int64) error
}

func (e endless) Size() int64      { return e.size }
func (e endless) Close() error     { return nil }
func (e endless) Unchanged() error { return nil }
func (e endless) Next(at int64) (int64, int64, error) {
	if at >= e.size {
		return 0, 0, io.EOF
	}
	return at, e.size, nil
}

func (e endless) ReadAt(b []byte, at int64) (int, error) {
	if err := e.read(at); err != nil {
		return 0, err
	}
	return len(b), nil
}

// noImages is a source of an image without content.
type noImages struct{}

func (noImages) Seed(context.Context, string) (api.Seed, error) { return api.Seed{}, nil }
func (noImages) OpenImage(context.Context, string) (io.ReadCloser, int64, error) {
	return http.NoBody, 0, nil
}

const shaOfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// target is a node that can take a disk, and the plan of a VM for it.
func target(t *testing.T) (*storage.Fake, steps.VMPlan) {
	pool := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/vms"}
	f := &storage.Fake{}
	_, err := f.Prepare(t.Context(), pool)
	require.NoError(t, err)
	return f, steps.VMPlan{VM: api.NewID(), Disk: steps.DiskPlan{Volume: api.NewID(), Pool: pool.Pool, PoolPath: pool.Path, Size: api.GiB, Image: api.NewID(), ImageSHA256: shaOfNothing}}
}

func TestDisksGoOverHTTP(t *testing.T) {
	from, p := target(t)
	to, _ := target(t)
	_, err := to.Prepare(t.Context(), steps.PoolOnNode{Pool: p.Disk.Pool, Type: api.PoolDir, Path: "/other"})
	require.NoError(t, err)
	require.NoError(t, from.MakeDisk(t.Context(), p, noImages{}, nil))
	a, b := newPeer(t, "127.0.0.1:0"), newPeer(t, "") // who only takes needs no address
	offer, err := a.Offer(t.Context(), p.Disk.Volume, func(ctx context.Context) (storage.Disk, error) { return from.OpenDisk(ctx, p) })
	require.NoError(t, err)
	fetch := func(ctx context.Context) (io.ReadCloser, error) { return b.Fetch(ctx, offer) }
	there := p
	there.Disk.PoolPath = "/other"
	for range 2 {
		require.NoError(t, to.ReceiveDisk(t.Context(), there, noImages{}, fetch, nil))
		require.Equal(t, from.Content(p), to.Content(there))
	}

	// What the source says about its disk arrives as it was said.
	require.NoError(t, from.RemoveDisk(t.Context(), p))
	_, err = fetch(t.Context())
	require.True(t, problem.Is(err, problem.NotFound), "%v", err)
	wrong := offer
	wrong.Ticket = "0" + offer.Ticket[1:]
	if wrong == offer {
		wrong.Ticket = "1" + offer.Ticket[1:]
	}
	_, err = b.Fetch(t.Context(), wrong)
	require.True(t, problem.Is(err, problem.Unavailable), "a new offer may be better: %v", err)
	for _, o := range []steps.DiskOffer{{}, {Address: offer.Address}, {Address: offer.Address, Ticket: "../../v1/vms"}, {Address: "nowhere", Ticket: offer.Ticket}} {
		_, err = b.Fetch(t.Context(), o)
		require.True(t, problem.Is(err, problem.Invalid), "%v", err)
	}
	a.close()
	_, err = b.Fetch(t.Context(), offer)
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	require.NotContains(t, err.Error(), offer.Ticket, "a ticket is a secret")

	_, err = b.Offer(t.Context(), p.Disk.Volume, nil)
	require.True(t, problem.Is(err, problem.Unsupported), "%v", err)
	require.Contains(t, problem.From(err).Fix, "--peer-listen")
}

func TestNothingButTransfersIsServed(t *testing.T) {
	a := newPeer(t, "127.0.0.1:0")
	l, err := a.open()
	require.NoError(t, err)
	for _, path := range []string{"/", "/v1/transfer/", "/v1/transfer/x/y", "/v1/transfer/../../etc/passwd", "/metrics"} {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusNotFound, resp.StatusCode, path)
	}
	resp, err := http.Post("http://"+l.Addr().String()+"/v1/transfer/x", "text/plain", nil)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
}

func TestAPortThatIsTakenIsTriedAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := newPeer(t, l.Addr().String())
	_, err = a.Offer(t.Context(), "volume", nil)
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	require.NoError(t, l.Close())
	offer, err := a.Offer(t.Context(), "volume", nil)
	require.NoError(t, err)
	require.Equal(t, l.Addr().String(), offer.Address)
}

func TestWhereOthersReachAnAgent(t *testing.T) {
	a := newPeer(t, ":0")
	_, err := a.Offer(t.Context(), "volume", nil)
	require.True(t, problem.Is(err, problem.Unsupported), "the server is here, which says nothing: %v", err)
	require.Contains(t, problem.From(err).Fix, "--peer-address")
	l, err := a.open()
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	a.host = "node-a.example.org"
	offer, err := a.Offer(t.Context(), "volume", nil)
	require.NoError(t, err)
	require.Equal(t, "node-a.example.org:"+port, offer.Address)
}

func TestASourceThatCannotReadItsDisk(t *testing.T) {
	a, b := newPeer(t, "127.0.0.1:0"), newPeer(t, "")
	to, p := target(t)
	offer, err := a.Offer(t.Context(), p.Disk.Volume, func(context.Context) (storage.Disk, error) {
		return endless{size: 3 * api.MiB, read: func(at int64) error {
			if at == 0 {
				return nil
			}
			return errors.New("bad sector")
		}}, nil
	})
	require.NoError(t, err)
	err = to.ReceiveDisk(t.Context(), p, noImages{}, func(ctx context.Context) (io.ReadCloser, error) { return b.Fetch(ctx, offer) }, nil)
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	require.Empty(t, to.Content(p))
}

// TestPeerHelper is the source of the next test, in a process of its own.
func TestPeerHelper(t *testing.T) {
	if os.Getenv("NEXTSTACK_TEST_PEER") == "" {
		return // it is part of another test, and nothing by itself
	}
	a := newPeer(t, "127.0.0.1:0")
	offer, err := a.Offer(t.Context(), "volume", func(context.Context) (storage.Disk, error) {
		return endless{size: 3 * api.MiB, read: func(at int64) error {
			if at == 0 {
				return nil
			}
			os.Stdout.WriteString("in the middle\n") //nolint:errcheck // the other test would notice
			select {}
		}}, nil
	})
	require.NoError(t, err)
	b, err := json.Marshal(offer)
	require.NoError(t, err)
	os.Stdout.Write(append(b, '\n')) //nolint:errcheck // the other test would notice
	select {}
}

func TestASourceThatIsKilledInTheMiddle(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestPeerHelper$")
	cmd.Env = append(os.Environ(), "NEXTSTACK_TEST_PEER=1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	var offer steps.DiskOffer
	require.NoError(t, json.Unmarshal(lines.Bytes(), &offer), "%s", lines.Text())

	b := newPeer(t, "")
	to, p := target(t)
	done := make(chan error, 1)
	go func() {
		done <- to.ReceiveDisk(t.Context(), p, noImages{}, func(ctx context.Context) (io.ReadCloser, error) { return b.Fetch(ctx, offer) }, nil)
	}()
	require.True(t, lines.Scan())
	require.Equal(t, "in the middle", lines.Text())
	require.NoError(t, cmd.Process.Kill())
	err = <-done
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	require.Empty(t, to.Content(p))
}

func TestATransferIsCancelled(t *testing.T) {
	a, b := newPeer(t, "127.0.0.1:0"), newPeer(t, "")
	to, p := target(t)
	middle, gone := make(chan struct{}), make(chan struct{})
	offer, err := a.Offer(t.Context(), p.Disk.Volume, func(ctx context.Context) (storage.Disk, error) {
		return endless{size: 2 * api.MiB, read: func(at int64) error {
			if at > 0 {
				close(middle)
				<-ctx.Done() // the source learns of it
				close(gone)
			}
			return nil
		}}, nil
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- to.ReceiveDisk(ctx, p, noImages{}, func(ctx context.Context) (io.ReadCloser, error) { return b.Fetch(ctx, offer) }, nil)
	}()
	<-middle
	cancel()
	require.True(t, problem.Is(<-done, problem.Cancelled))
	<-gone
}
