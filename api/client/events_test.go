package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func readFrames(r io.Reader) (out []frame, last string, err error) {
	fr := newFrameReader(r)
	for {
		f, err := fr.next()
		if err != nil {
			return out, fr.lastID(), err
		}
		out = append(out, f)
	}
}

func TestFrames(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want []frame
		last string
	}{
		"plain":            {"data: a\n\n", []frame{{"message", "a", ""}}, ""},
		"named":            {"id: 7\nevent: put\ndata: a\ndata:b\n\n", []frame{{"put", "a\nb", "7"}}, "7"},
		"line ends":        {"data: a\r\rdata: b\r\n\r\ndata: c\n\r\n", []frame{{"message", "a", ""}, {"message", "b", ""}, {"message", "c", ""}}, ""},
		"byte order mark":  {"\xef\xbb\xbfdata: a\n\n", []frame{{"message", "a", ""}}, ""},
		"comments":         {": hello\n\n:\ndata: a\n\n", []frame{{"message", "a", ""}}, ""},
		"id alone":         {"id: 9\n\n", nil, "9"},
		"id stays":         {"id: 1\ndata: a\n\ndata: b\n\n", []frame{{"message", "a", "1"}, {"message", "b", "1"}}, "1"},
		"id with NUL":      {"id: 1\n\nid: 2\x00\n\n", nil, "1"},
		"cut event":        {"id: 1\ndata: a\n\nid: 2\ndata: b\n", []frame{{"message", "a", "1"}}, "1"},
		"event, no data":   {"event: put\n\ndata: a\n\n", []frame{{"message", "a", ""}}, ""},
		"field alone":      {"data\n\n", []frame{{"message", "", ""}}, ""},
		"unknown field":    {"retry: 10\nfoo: bar\ndata:  a\n\n", []frame{{"message", " a", ""}}, ""},
		"nothing":          {"", nil, ""},
		"only line breaks": {"\n\r\r\n\n", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, last, err := readFrames(strings.NewReader(c.in))
			require.ErrorIs(t, err, io.EOF)
			require.Equal(t, c.want, got)
			require.Equal(t, c.last, last)
		})
	}
}

func TestEndlessFramesAreRefused(t *testing.T) {
	endless := func(s string) io.Reader {
		return strings.NewReader(strings.Repeat(s, 4*maxEvent/len(s)))
	}
	for _, s := range []string{"data", "data: xxxxxxxxxx\n"} {
		_, _, err := readFrames(endless(s))
		require.ErrorIs(t, err, errEventTooLong, s)
	}
}

// FuzzFrames: how a stream is cut into packets does not matter, and what one writes is what one reads.
func FuzzFrames(f *testing.F) {
	f.Add("id: 1\nevent: put\ndata: {}\n\n", "a\nb")
	f.Add("\xef\xbb\xbfdata\r\r\n:\n", "")
	f.Add("data: a\r", "\r")
	f.Fuzz(func(t *testing.T, stream, data string) {
		got, last, err := readFrames(strings.NewReader(stream))
		slow, slowLast, slowErr := readFrames(iotest.OneByteReader(strings.NewReader(stream)))
		require.Equal(t, got, slow)
		require.Equal(t, last, slowLast)
		require.Equal(t, err, slowErr)

		data = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(data)
		wire := "event: put\nid: 5\ndata: " + strings.ReplaceAll(data, "\n", "\ndata: ") + "\n\n"
		got, _, err = readFrames(strings.NewReader(wire))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, []frame{{"put", data, "5"}}, got)
	})
}

// tell writes events with these revisions and then ends as end says.
func tell(end http.HandlerFunc, revisions ...int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, ": connected\n\n")
		for _, n := range revisions {
			fmt.Fprintf(w, "id: %d\nevent: put\ndata: {\"kind\":\"vms\",\"id\":\"x\",\"name\":\"web\",\"revision\":%d,\"deleted\":false,\"resource\":{}}\n\n", n, n)
		}
		_ = http.NewResponseController(w).Flush()
		end(w, r)
	}
}

func TestEventsGoOnWhereTheyBroke(t *testing.T) {
	end := func(http.ResponseWriter, *http.Request) {}
	gone := refuse(problem.New(problem.Conflict, "compacted").Try("list again"))
	c, h := serve(t, func(c *Config) { c.Patience = -1 },
		tell(drop, 1, 2), drop, refuse(problem.New(problem.Unavailable, "starting")), tell(end, 3), tell(end), gone)
	var got []int64
	var last error
	for e, err := range c.Events(t.Context(), EventOptions{Since: 1, Kinds: []api.Kind{api.KindVM, api.KindOperation}, Project: "p"}) {
		if last = err; err == nil {
			got = append(got, e.Revision)
			require.Equal(t, "web", e.Name)
		}
	}
	require.Equal(t, []int64{1, 2, 3}, got)
	require.True(t, problem.Is(last, problem.Conflict), "%v", last)
	seen := h.seen()
	require.Len(t, seen, 6)
	require.Equal(t, "kinds=vms%2Coperations&project=p&since=1", seen[0].URL.RawQuery)
	ids := []string{}
	for _, r := range seen {
		ids = append(ids, r.Header.Get("Last-Event-ID"))
	}
	require.Equal(t, []string{"", "2", "2", "2", "3", "3"}, ids)
}

func TestEventsEnd(t *testing.T) {
	hold := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

	c, _ := serve(t, nil, tell(hold, 1))
	for e, err := range c.Events(t.Context(), EventOptions{}) {
		require.NoError(t, err)
		require.EqualValues(t, 1, e.Revision)
		break // the connection is freed, or the server's Close would hang
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range c.Events(ctx, EventOptions{}) {
		if n++; n == 1 {
			require.NoError(t, err)
			cancel()
			continue
		}
		require.True(t, problem.Is(err, problem.Cancelled), "%v", err)
	}
	require.Equal(t, 2, n)

	c, _ = serve(t, nil, tell(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "event: problem\ndata: {\"status\":409,\"detail\":\"too slow\",\"code\":\"conflict\"}\n\n")
	}))
	for _, err := range c.Events(t.Context(), EventOptions{}) {
		require.True(t, problem.Is(err, problem.Conflict), "%v", err)
	}

	c, _ = serve(t, nil, refuse(problem.New(problem.Unauthenticated, "who are you?")))
	for _, err := range c.Events(t.Context(), EventOptions{}) {
		require.True(t, problem.Is(err, problem.Unauthenticated), "%v", err)
	}
}
