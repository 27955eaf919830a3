package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDocumentIsNotStale(t *testing.T) {
	committed, err := os.ReadFile("../openapi.json")
	require.NoError(t, err)
	if !bytes.Equal(committed, New(Options{}).OpenAPI()) {
		t.Fatal("api/openapi.json is stale; run: make generate")
	}
}

func TestDocumentIsComplete(t *testing.T) {
	var doc struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]map[string]struct {
			OperationID string                    `json:"operationId"`
			Summary     string                    `json:"summary"`
			Tags        []string                  `json:"tags"`
			Security    []map[string][]string     `json:"security"`
			Responses   map[string]map[string]any `json:"responses"`
		} `json:"paths"`
		Components struct {
			Schemas map[string]json.RawMessage `json:"schemas"`
		} `json:"components"`
	}
	text := New(Options{}).OpenAPI()
	require.NoError(t, json.Unmarshal(text, &doc))
	require.Equal(t, "3.1.0", doc.OpenAPI)
	ids := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			require.NotEmpty(t, op.Summary, "%s %s", method, path)
			require.NotEmpty(t, op.OperationID, "%s %s", method, path)
			require.NotEmpty(t, op.Tags, "%s %s", method, path)
			require.Contains(t, op.Responses, "default", "%s %s", method, path)
			require.False(t, ids[op.OperationID], op.OperationID)
			ids[op.OperationID] = true
		}
	}
	// Every reference leads somewhere.
	for _, m := range regexp.MustCompile(`"#/components/schemas/(\w+)"`).FindAllSubmatch(text, -1) {
		require.Contains(t, doc.Components.Schemas, string(m[1]))
	}
	require.NotContains(t, string(text), "requestHash")
}

// Servers share nothing: under race detection, this finds what their routes would have in common.
func TestServersStartSideBySide(t *testing.T) {
	var running sync.WaitGroup
	documents := make([][]byte, 4)
	for i := range documents {
		running.Go(func() { documents[i] = New(Options{}).OpenAPI() })
	}
	running.Wait()
	for _, d := range documents[1:] {
		require.Equal(t, string(documents[0]), string(d))
	}
}

func TestDocsNeedNoInternet(t *testing.T) {
	require.NotRegexp(t, `(src|href)="(https?:)?//`, string(docsPage))
	require.NotContains(t, string(docsPage), "http://")
	require.NotContains(t, string(docsPage), "https://")
	require.Equal(t, 1, bytes.Count(docsPage, []byte("<script")), "the policy allows one script")
	k := newKit(t)
	r := k.call("", http.MethodGet, "/docs", nil, 200, nil)
	require.Contains(t, r.Header.Get("Content-Security-Policy"), "default-src 'none'")
	require.Equal(t, docsPage, r.body)
}

func TestServeEndsWithItsContext(t *testing.T) {
	k := newKit(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- k.server.Serve(ctx, l, 5*time.Second) }()
	k.http.URL = "http://" + l.Addr().String()
	events, _ := k.follow("")
	cancel()
	for range events {
	}
	require.NoError(t, <-ended)
	_, err = net.Dial("tcp", l.Addr().String())
	require.Error(t, err)
}
