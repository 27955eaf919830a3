package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Timing of transfers between nodes.
const (
	peerDial    = 10 * time.Second
	peerAnswer  = 30 * time.Second // the other has to look at the disk first
	peerSilence = time.Minute      // a target that takes nothing for so long is gone
)

const (
	transferPath = "/v1/transfer/"
	ticketDigits = 64
)

// peers gives disks to the agents of other nodes, and takes them, over HTTP. Who has a ticket gets the disk that it is for.
// Nothing is encrypted, as libvirt's own migration streams are not: the network between the nodes must be trusted.
type peers struct {
	tickets storage.Tickets
	listen  string // host:port; empty: no disk is given away
	host    string // that other nodes reach this one at; empty: what it listens on, or the address toward the server
	server  string // as in the configuration
	log     *slog.Logger
	client  *http.Client

	mu  sync.Mutex
	at  net.Listener // nil: not yet
	srv *http.Server
}

var _ storage.Peers = (*peers)(nil)

func newPeers(listen, host, server string, log *slog.Logger) *peers {
	dial := &net.Dialer{Timeout: peerDial, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: peerDial, Interval: 5 * time.Second, Count: 3}}
	return &peers{listen: listen, host: host, server: server, log: log, client: &http.Client{
		// No proxy: nodes talk to each other directly or not at all. No compression: it would cost more than it saves.
		Transport: &http.Transport{
			DialContext: dial.DialContext, ResponseHeaderTimeout: peerAnswer, DisableCompression: true, DisableKeepAlives: true, MaxResponseHeaderBytes: 1 << 14,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// open begins to listen, if that is wanted and not done yet. A port that is taken may be free when a disk is next offered.
func (p *peers) open() (net.Listener, error) {
	if p.listen == "" {
		return nil, problem.New(problem.Unsupported, "this node gives no disks to others").Because("its agent listens for no other agents").
			Try("start the agent with --peer-listen, for example --peer-listen :8897, or move the VM while it runs")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at != nil {
		return p.at, nil
	}
	l, err := net.Listen("tcp", p.listen)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "the agent cannot listen on %s for other agents", p.listen)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+transferPath+"{ticket}", p.give)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: peerDial, MaxHeaderBytes: 1 << 14, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}
	p.at, p.srv = l, srv
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("other agents cannot fetch disks any more", "listen", l.Addr().String(), "error", err)
		}
	}()
	p.log.Info("other agents can fetch disks", "listen", l.Addr().String())
	return l, nil
}

// close ends all transfers.
func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.srv != nil {
		p.srv.Close() //nolint:errcheck // nothing could be done about it
		p.at, p.srv = nil, nil
	}
}

// Offer implements storage.Peers.
func (p *peers) Offer(ctx context.Context, volume string, open storage.OpenDisk) (steps.DiskOffer, error) {
	l, err := p.open()
	if err != nil {
		return steps.DiskOffer{}, err
	}
	address, err := p.address(ctx, l.Addr())
	if err != nil {
		return steps.DiskOffer{}, err
	}
	ticket, err := p.tickets.Issue(volume, open)
	return steps.DiskOffer{Address: address, Ticket: ticket}, err
}

// address is where other nodes find the listener. One on all addresses is at that from which this node reaches the server:
// nobody else tells a node how it is reached.
func (p *peers) address(ctx context.Context, bound net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(bound.String())
	if err != nil {
		return "", problem.Wrap(err, problem.Internal, "the agent does not know where it listens")
	}
	if p.host != "" {
		return net.JoinHostPort(p.host, port), nil
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return bound.String(), nil
	}
	if host, err = toward(ctx, p.server); err != nil {
		return "", problem.Wrap(err, problem.Unavailable, "the agent does not know at which address other nodes reach it")
	}
	return net.JoinHostPort(host, port), nil
}

// give sends a disk to who has the ticket.
func (p *peers) give(w http.ResponseWriter, r *http.Request) {
	d, err := p.tickets.Redeem(r.Context(), r.PathValue("ticket"))
	if err != nil {
		doc := problem.From(err).Document()
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(doc.Status)
		_ = json.NewEncoder(w).Encode(doc)
		return
	}
	defer d.Close() //nolint:errcheck // was only read
	w.Header().Set("Content-Type", "application/octet-stream")
	out := &impatient{w, http.NewResponseController(w)}
	if err := storage.SendDisk(r.Context(), out, d); err != nil {
		p.log.Warn("a disk was not sent to its end", "to", r.RemoteAddr, "error", err)
		panic(http.ErrAbortHandler) // so that it does not look like one
	}
}

// impatient is a response whose reader has to go on reading.
type impatient struct {
	io.Writer
	control *http.ResponseController
}

func (i *impatient) Write(b []byte) (int, error) {
	if err := i.control.SetWriteDeadline(time.Now().Add(peerSilence)); err != nil {
		return 0, err
	}
	return i.Writer.Write(b)
}

// Fetch implements storage.Peers.
func (p *peers) Fetch(ctx context.Context, o steps.DiskOffer) (io.ReadCloser, error) {
	_, _, err := net.SplitHostPort(o.Address)
	if _, herr := hex.DecodeString(o.Ticket); err != nil || herr != nil || len(o.Ticket) != ticketDigits {
		return nil, problem.New(problem.Invalid, "the offer of a disk at %q cannot be read", o.Address)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, (&url.URL{Scheme: "http", Host: o.Address, Path: transferPath + o.Ticket}).String(), nil)
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "the offer of a disk at %q cannot be read", o.Address)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		// The text of err would tell the ticket.
		return nil, problem.New(problem.Unavailable, "the agent at %s cannot be reached", o.Address).Because("%s", withoutURL(err)).
			Try("see that the nodes reach each other on that address, and that no firewall is between them")
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close() //nolint:errcheck // was only read
	var doc problem.Document
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&doc); err != nil || doc.Code == "" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		return nil, problem.New(problem.Unavailable, "the agent at %s does not give the disk", o.Address).Because("it answers %s", resp.Status)
	}
	return nil, problem.Wrap(doc.Problem(), problem.Unavailable, "the agent at %s does not give the disk", o.Address)
}

func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
