package images

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// Limits of what is fetched from other servers.
const (
	maxRedirects  = 5
	remoteDial    = 15 * time.Second
	remoteAnswer  = 30 * time.Second
	remoteSilence = time.Minute // a server that sends nothing for so long is gone
)

// remote is the servers that images may be fetched from.
type remote struct{ prefixes []prefix }

// prefix is the beginning of URLs that are allowed.
type prefix struct {
	scheme, host, path string
	// local: the configuration names an address, or localhost. Others must not lead to this machine or its link, whatever a
	// name server says.
	local bool
}

func newRemote(allowed []string) (remote, error) {
	var r remote
	for _, a := range allowed {
		u, err := url.Parse(a)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return r, problem.New(problem.Invalid, "%q cannot be the beginning of URLs", a).Try("give one like https://cloud.debian.org/images/")
		}
		p := prefix{scheme: u.Scheme, host: hostOf(u), path: strings.TrimSuffix(u.Path, "/") + "/"}
		_, err = netip.ParseAddr(u.Hostname())
		p.local = err == nil || u.Hostname() == "localhost"
		r.prefixes = append(r.prefixes, p)
	}
	return r, nil
}

// hostOf returns host and port of a URL as they are compared.
func hostOf(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), port)
}

// allow reads a URL and finds what allows it.
func (r remote) allow(raw string) (*url.URL, prefix, error) {
	u, err := url.Parse(raw)
	if err != nil || u.User != nil || u.Opaque != "" {
		return nil, prefix{}, problem.New(problem.Invalid, "the URL of the image cannot be read").Try("give one like https://HOST/FILE, without a password")
	}
	dots := slices.ContainsFunc(strings.Split(u.Path, "/"), func(s string) bool { return s == ".." || s == "." })
	for _, p := range r.prefixes {
		if !dots && u.Scheme == p.scheme && hostOf(u) == p.host && strings.HasPrefix(path.Clean("/"+u.Path), strings.TrimSuffix(p.path, "/")+"/") {
			return u, p, nil
		}
	}
	return nil, prefix{}, problem.New(problem.Forbidden, "images may not be fetched from %s", u.Host).Because("no URL that the server's configuration allows begins like that").
		Try("upload the image, or have the URL's beginning added to the server's --image-url")
}

// open asks for a URL, and for what it leads to. Each of them must be allowed.
func (r remote) open(ctx context.Context, raw string, header http.Header) (*http.Response, error) {
	for hop := 0; ; hop++ {
		u, p, err := r.allow(raw)
		if err != nil {
			return nil, err
		}
		resp, err := ask(ctx, u, p.local, header)
		if err != nil {
			return nil, err
		}
		if !slices.Contains([]int{301, 302, 303, 307, 308}, resp.StatusCode) {
			return resp, nil
		}
		next, err := resp.Location()
		resp.Body.Close() //nolint:errcheck // nothing of it was wanted
		switch {
		case err != nil:
			return nil, problem.New(problem.Invalid, "%s leads nowhere", u.Host).Because("it answers %s without a place", resp.Status)
		case hop == maxRedirects:
			return nil, problem.New(problem.Invalid, "%s leads in circles", u.Host).Because("after %d redirects there is still another", maxRedirects).Try("give the URL of the file itself")
		case u.Scheme == "https" && next.Scheme != "https":
			return nil, problem.New(problem.Forbidden, "%s leads away from https", u.Host).Because("it redirects to %s://%s", next.Scheme, next.Host).Try("give the URL of the file itself")
		}
		raw = next.String()
	}
}

// ask sends one request over a connection of its own. There is no proxy: the address that is connected to is what is checked.
func ask(ctx context.Context, u *url.URL, local bool, header http.Header) (*http.Response, error) {
	dial := &net.Dialer{Timeout: remoteDial, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		if !local && !public(address) {
			return errNotPublic
		}
		return nil
	}}
	client := &http.Client{
		Transport: &http.Transport{
			DialContext: dial.DialContext, TLSHandshakeTimeout: remoteDial, ResponseHeaderTimeout: remoteAnswer,
			DisableCompression: true, DisableKeepAlives: true, MaxResponseHeaderBytes: 1 << 16,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "the URL of the image cannot be read")
	}
	req.Header = header.Clone()
	req.Header.Set("User-Agent", "NextStack")
	resp, err := client.Do(req)
	switch {
	case err == nil:
		return resp, nil
	case errors.Is(err, errNotPublic):
		return nil, problem.New(problem.Forbidden, "images may not be fetched from %s", u.Host).Because("%s", errNotPublic).
			Try("name the address itself in the server's --image-url, if that is meant")
	default:
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // the URL may have a secret in it
		}
		return nil, problem.New(problem.Unavailable, "%s cannot be reached", u.Host).Because("%s", err)
	}
}

var errNotPublic = errors.New("its name leads to this machine or its link")

// public reports whether an address, with its port, is neither this machine nor something on its link alone.
func public(address string) bool {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return false
	}
	ip := at.Addr().Unmap()
	return !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsInterfaceLocalMulticast()
}

// watched ends a transfer that stands still.
type watched struct {
	io.Reader
	dog *time.Timer
}

func (w watched) Read(b []byte) (int, error) {
	n, err := w.Reader.Read(b)
	if n > 0 {
		w.dog.Reset(remoteSilence)
	}
	return n, err
}
