package node

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

// identity is who the agent is. It is kept in a file, so that the next start needs no join.
type identity struct{ api.AgentJoined }

func (a *agent) identityFile() string { return filepath.Join(a.cfg.DataDir, "agent.json") }

// identity returns the identity that is kept, or joins.
func (a *agent) identity(ctx context.Context) (*identity, error) {
	id, err := readIdentity(a.identityFile())
	if errors.Is(err, fs.ErrNotExist) {
		if id, err = a.join(ctx); err == nil {
			err = writeIdentity(a.identityFile(), id)
		}
	}
	if err != nil {
		return nil, err
	}
	a.api.SetToken(id.Credential)
	return id, nil
}

func readIdentity(path string) (*identity, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil || !api.IsUUID(id.ID) || id.Credential == "" {
		return nil, problem.New(problem.Invalid, "the agent's identity in %s cannot be read", path).Try("remove the file and start the agent with a join token")
	}
	return &id, nil
}

func writeIdentity(path string, id *identity) error {
	b, err := json.Marshal(id)
	if err == nil {
		err = writeDurably(path, b)
	}
	return problem.Wrap(err, problem.Internal, "the agent's identity cannot be kept in %s", path)
}

// writeDurably replaces a file that only we may read; after a power cut there is the old one or the new one.
func writeDurably(path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// forget puts the identity aside that the server does not know. It is kept under another name, for whoever wonders.
func (a *agent) forget(id *identity) error {
	a.log.Error("the server does not know this agent: joining again", "id", id.ID, "server", a.api.Address())
	return problem.Wrap(os.Rename(a.identityFile(), a.identityFile()+".old"), problem.Internal, "the old identity cannot be put aside")
}

// canJoin reports whether there is a token to join with.
func (a *agent) canJoin() bool {
	token, err := a.joinToken()
	return err == nil && token != ""
}

func (a *agent) joinToken() (string, error) {
	if a.cfg.JoinToken != "" || a.cfg.JoinTokenFile == "" {
		return a.cfg.JoinToken, nil
	}
	b, err := os.ReadFile(a.cfg.JoinTokenFile)
	return strings.TrimSpace(string(b)), err
}

// joinEvery is how often a join is tried while the server or the token is not there yet.
const joinEvery = time.Second

// join becomes a member. It waits for a server that is not there; one that refuses is an error.
func (a *agent) join(ctx context.Context) (*identity, error) {
	if a.cfg.JoinToken == "" && a.cfg.JoinTokenFile == "" {
		return nil, problem.New(problem.Unauthenticated, "this node is not a member, and has no token to become one").
			Try("give the agent the join token that the server has written to its --join-token-file")
	}
	var said string
	wait := func(err error) bool {
		if s := err.Error(); s != said { // once for each reason
			said = s
			a.log.Warn("cannot join yet, trying on", "server", a.api.Address(), "error", err)
		}
		return pause(ctx, joinEvery)
	}
	for {
		token, err := a.joinToken()
		switch {
		case errors.Is(err, fs.ErrNotExist) || err == nil && token == "":
			err = problem.New(problem.Unavailable, "the join token file %s is not there yet, or empty", a.cfg.JoinTokenFile)
		case err != nil:
			return nil, problem.Wrap(err, problem.Invalid, "the join token cannot be read")
		default:
			a.api.SetToken("")
			joined, jerr := a.api.Join(ctx, api.AgentJoin{Name: a.cfg.Name, Token: token})
			if jerr == nil {
				return &identity{AgentJoined: *joined}, nil
			}
			err = jerr
		}
		// A token in a file may be renewed; one that was given is wrong for good.
		curable := problem.TraitsOf(problem.KindOf(err)).Retry || a.cfg.JoinToken == "" && problem.Is(err, problem.Unauthenticated)
		if !curable {
			return nil, problem.Wrap(err, problem.Internal, "node %s cannot join %s", a.cfg.Name, a.api.Address())
		}
		if !wait(err) {
			return nil, ctx.Err()
		}
	}
}

// pause waits for d and reports whether ctx is still wanted.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// newClient returns a client of the server, which may be given as URL, host:port or host.
func newClient(server, version string) (*client.Client, error) {
	cfg := client.Config{Host: strings.TrimSuffix(server, "/"), UserAgent: "nextstack-agent/" + version, Timeout: 10 * time.Second, Patience: 5 * time.Second}
	scheme, rest, ok := strings.Cut(cfg.Host, "://")
	if !ok {
		scheme, rest = "http", cfg.Host
	}
	if host, port, err := net.SplitHostPort(rest); err == nil {
		n, err := strconv.Atoi(port)
		if err != nil {
			return nil, problem.New(problem.Invalid, "%q is not the address of a server", server).Because("%q is not a port", port)
		}
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		cfg.Host, cfg.Port = scheme+"://"+host, n
	}
	return client.New(cfg)
}

// temporalAddress is where the server said that Temporal is. A server that listens on all its addresses cannot know which of
// them we reach it at.
func (a *agent) temporalAddress(id *identity) string {
	host, port, err := net.SplitHostPort(id.TemporalAddress)
	if err != nil {
		return id.TemporalAddress
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		if u, err := url.Parse(a.api.Address()); err == nil {
			return net.JoinHostPort(u.Hostname(), port)
		}
	}
	return id.TemporalAddress
}
