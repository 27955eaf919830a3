package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// notesExt ends the name of what is known of a source that is being fetched.
const notesExt = ".src.json"

// How often a transfer that brings nothing is begun anew before the attempt is given up, and the pause before that.
const (
	fetchTries = 4
	fetchPause = 500 * time.Millisecond
)

// notes is what is known of a source that is being fetched, so that another attempt, or another run of the server, goes on.
type notes struct {
	URL   string    `json:"url"`
	Began time.Time `json:"began"`
	// Tag tells this content of the URL from any other: a strong ETag, or the time of its last change. Without one a transfer
	// cannot go on, unless the checksum is known.
	Tag   string `json:"tag,omitempty"`
	Total int64  `json:"total"` // bytes; -1: not known
	Done  int64  `json:"done"`  // bytes that are safe on disk
	Whole bool   `json:"whole,omitempty"`
}

// fetch is a transfer that is under way.
type fetch struct {
	*job
	notes
	out *os.File
	sum hash.Hash
	at  int64 // bytes in out, all of which are in sum
}

// fetch brings the image from its URL to j.src, and returns its SHA-256 and size. What is there of it already is kept.
func (j *job) fetch(ctx context.Context) (sum string, size int64, err error) {
	if _, _, err := j.remote.allow(j.in.URL); err != nil { // it may have been allowed once
		return "", 0, err
	}
	out, err := os.OpenFile(j.src, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return "", 0, problem.Wrap(err, problem.Internal, "the image cannot be stored")
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	f := &fetch{job: j, notes: j.read(), out: out, sum: sha256.New()}
	if f.URL != j.in.URL {
		f.notes = notes{URL: j.in.URL, Began: time.Now(), Total: -1}
	}
	if err := f.back(ctx, f.Done); err != nil {
		return "", 0, err
	}
	for tries := 0; !f.Whole; {
		before := f.at
		err := f.some(ctx)
		serr := f.save()
		switch {
		case ctx.Err() != nil:
			return "", 0, problem.New(problem.Cancelled, "fetching the image was cancelled")
		case err == nil && serr == nil:
			continue
		case serr != nil:
			return "", 0, serr
		case !problem.TraitsOf(problem.KindOf(err)).Retry || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
			return "", 0, err
		}
		if tries++; f.at > before {
			tries = 0
		}
		if tries >= fetchTries {
			return "", 0, err
		}
		pause := time.NewTimer(fetchPause << tries)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
	return hex.EncodeToString(f.sum.Sum(nil)), f.at, nil
}

// read returns the notes of an earlier attempt; none, if there are none that can be read.
func (j *job) read() (n notes) {
	b, err := os.ReadFile(j.notes())
	if err != nil || json.Unmarshal(b, &n) != nil || n.Done < 0 {
		return notes{}
	}
	return n
}

func (j *job) notes() string { return strings.TrimSuffix(j.src, sourceExt) + notesExt }

// back makes the file what its first bytes are. If it has not so many, it begins anew.
func (f *fetch) back(ctx context.Context, to int64) error {
	info, err := f.out.Stat()
	if err == nil && info.Size() < to {
		to, f.Whole = 0, false
	}
	if err == nil {
		err = f.out.Truncate(to)
	}
	if err == nil {
		_, err = f.out.Seek(0, io.SeekStart)
	}
	if err == nil {
		f.sum.Reset()
		f.at, err = io.Copy(f.sum, &reader{ctx: ctx, r: f.out})
	}
	f.Done = f.at
	return problem.Wrap(err, problem.Internal, "what is there of the image cannot be read")
}

// save makes what has come durable, and then notes how much it is.
func (f *fetch) save() error {
	err := f.out.Sync()
	if err == nil {
		f.Done = f.at
		var b []byte
		if b, err = json.Marshal(f.notes); err == nil {
			tmp := f.job.notes() + madeExt
			if err = os.WriteFile(tmp, b, 0o600); err == nil {
				err = os.Rename(tmp, f.job.notes())
			}
		}
	}
	return problem.Wrap(err, problem.Internal, "the image cannot be stored")
}

// some brings what it can over one connection.
func (f *fetch) some(ctx context.Context) error {
	if limit := f.fetchTime; time.Since(f.Began) > limit {
		return problem.New(problem.Timeout, "the image has not come within %s", limit).Because("%d bytes are there", f.at).
			Try("fetch it by hand and upload it, or raise the server's --image-url-timeout")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dog := time.AfterFunc(remoteDial+remoteAnswer+remoteSilence, cancel)
	defer dog.Stop()
	if f.Tag == "" && f.in.SHA256 == "" && f.at > 0 {
		if err := f.back(ctx, 0); err != nil {
			return err
		}
	}
	header := http.Header{"Accept-Encoding": {"identity"}}
	if f.at > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", f.at))
		if f.Tag != "" {
			header.Set("If-Range", f.Tag)
		}
	}
	resp, err := f.remote.open(ctx, f.in.URL, header)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // was only read
	if err := f.answer(ctx, resp); err != nil || f.Whole {
		return err
	}
	if f.Total > f.maxSize {
		return f.tooLarge(f.Total)
	}
	return f.body(watched{resp.Body, dog})
}

// answer sees whether the body of an answer goes on from what is there.
func (f *fetch) answer(ctx context.Context, resp *http.Response) error {
	host := hostName(f.in.URL)
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		f.Tag, f.Total = tagOf(resp.Header), resp.ContentLength
		return f.back(ctx, 0)
	case code == http.StatusPartialContent:
		var from, to, total int64
		n, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &total)
		if err != nil || n != 3 || from != f.at || to != total-1 || f.Total >= 0 && total != f.Total {
			f.Tag, f.Total = "", -1 // from the beginning, then
			if err := f.back(ctx, 0); err != nil {
				return err
			}
			return problem.New(problem.Unavailable, "%s sends another part than was asked for", host).Because("it says %q", resp.Header.Get("Content-Range"))
		}
		f.Total = total
		return nil
	case code == http.StatusRequestedRangeNotSatisfiable && f.at > 0:
		if f.at == f.Total {
			f.Whole = true
			return nil
		}
		f.Tag, f.Total = "", -1
		if err := f.back(ctx, 0); err != nil {
			return err
		}
		return problem.New(problem.Unavailable, "%s has another file now", host)
	case code == http.StatusNotFound || code == http.StatusGone:
		return problem.New(problem.NotFound, "%s has no such file", host).Because("it answers %s", resp.Status).Try("see that the URL is right")
	case code == http.StatusTooManyRequests || code >= 500:
		return problem.New(problem.Unavailable, "%s does not give the file", host).Because("it answers %s", resp.Status)
	default:
		return problem.New(problem.Invalid, "%s does not give the file", host).Because("it answers %s", resp.Status).Try("see that the URL is right, and can be fetched without a password")
	}
}

func hostName(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "the server"
	}
	return u.Host
}

// tagOf returns what If-Range takes.
func tagOf(h http.Header) string {
	if tag := h.Get("ETag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		return tag
	}
	return h.Get("Last-Modified")
}

// body reads an answer to its end, and notes now and then how far it is.
func (f *fetch) body(in io.Reader) error {
	buf := make([]byte, api.MiB)
	began, from := time.Now(), f.at
	for {
		n, err := in.Read(buf)
		if _, werr := f.out.WriteAt(buf[:n], f.at); werr != nil {
			return werr
		}
		f.sum.Write(buf[:n])
		f.at += int64(n)
		if f.at > f.maxSize {
			return f.tooLarge(f.at)
		}
		p := api.Progress{Text: "fetching from " + hostName(f.in.URL), Done: f.at, Total: max(0, f.Total)}
		if took := time.Since(began); took > time.Second {
			p.Rate = int64(float64(f.at-from) / took.Seconds())
		}
		f.tell(p)
		switch {
		case errors.Is(err, io.EOF) && (f.Total < 0 || f.at == f.Total):
			f.Whole = true
			return nil
		case err != nil:
			return problem.New(problem.Unavailable, "the transfer from %s broke off after %d bytes", hostName(f.in.URL), f.at).Because("%s", err)
		case f.at-f.Done >= tellEvery:
			if err := f.save(); err != nil {
				return err
			}
		}
	}
}
