// Package client speaks the REST API. It needs net/http and nothing else, so that gnext stays small. Every write carries an
// Idempotency-Key: one that is sent again because its connection was lost cannot happen twice. Errors are *problem.Problem.
package client

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// Where the server is if nobody says otherwise.
const (
	DefaultHost = "127.0.0.1"
	DefaultPort = 8899
)

// Config says how to reach the server. Its zero value reaches one on this machine.
type Config struct {
	Host  string // host name, IP address or http(s)://host; default 127.0.0.1
	Port  int    // default 8899
	Token string // bearer token; empty: none is sent

	// Timeout is for one attempt of one request, long polls, streams and uploads excepted; default 30 s.
	Timeout time.Duration
	// Patience is for how long a request is sent again after its connection was lost or the server answered that it is
	// unavailable; default 10 s, negative: not at all.
	Patience time.Duration
	// DialPatience is for how long a server that cannot be connected to at all is tried; default: not at all.
	DialPatience time.Duration

	UserAgent string
	// Trace, if set, is told of every request and answer. It never sees a token, a header or a body.
	Trace func(format string, args ...any)
	// Transport replaces the HTTP transport, for tests.
	Transport http.RoundTripper
}

// Client is a connection to one server. It is safe for concurrent use.
type Client struct {
	config Config
	base   string // http://host:port
	http   *http.Client
	token  atomic.Pointer[string]
}

// New returns a client. It does not connect; an address that cannot be one is an invalid problem.
func New(c Config) (*Client, error) {
	c.Host, c.Port = cmp.Or(c.Host, DefaultHost), cmp.Or(c.Port, DefaultPort)
	c.Timeout, c.Patience = cmp.Or(c.Timeout, 30*time.Second), cmp.Or(c.Patience, 10*time.Second)
	c.UserAgent = cmp.Or(c.UserAgent, "nextstack-client")
	if c.Trace == nil {
		c.Trace = func(string, ...any) {}
	}
	base, err := baseURL(c.Host, c.Port)
	if err != nil {
		return nil, err
	}
	if c.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
		t.MaxIdleConnsPerHost = 16
		c.Transport = t
	}
	out := &Client{config: c, base: base, http: &http.Client{
		Transport: c.Transport,
		// A redirect would carry the token to wherever it points; no server of ours sends one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	out.SetToken(c.Token)
	return out, nil
}

// Address returns where the server is, as a URL.
func (c *Client) Address() string { return c.base }

// SetToken makes every later request carry token.
func (c *Client) SetToken(token string) { c.token.Store(&token) }

func baseURL(host string, port int) (string, error) {
	bad := func(why string) error {
		return problem.New(problem.Invalid, "%q is not the address of a server", host).Because("%s", why).
			Try("give a host name or an IP address with --host or GNEXT_HOST, and the port with --port or GNEXT_PORT")
	}
	scheme := "http"
	if s, rest, ok := strings.Cut(host, "://"); ok {
		if scheme, host = s, strings.TrimSuffix(rest, "/"); scheme != "http" && scheme != "https" {
			return "", bad("only http and https are spoken")
		}
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if h, p, err := net.SplitHostPort(host); err == nil && net.ParseIP(host) == nil {
		return "", bad("the port " + p + " stands in the host " + h)
	}
	if host == "" || strings.ContainsAny(host, "/?#@ \t\r\n\\[]") {
		return "", bad("it has characters that no host name has")
	}
	if port < 1 || port > 65535 {
		return "", bad("port " + strconv.Itoa(port) + " is not in 1 to 65535")
	}
	u := url.URL{Scheme: scheme, Host: net.JoinHostPort(host, strconv.Itoa(port))}
	return u.String(), nil
}

// Health is what the server says of itself.
type Health struct {
	Status  string `json:"status"`
	Version string `json:"version"`
}

// Health asks the server how it is. It needs no token.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	var h Health
	return &h, c.call(ctx, &request{method: http.MethodGet, path: "/v1/health"}, &h)
}
