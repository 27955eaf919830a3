package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// TestVolumesAreExported: the agent that was asked sends, and nobody else, as long as the operation runs; then who may read volumes
// of the project fetches what was made of it.
func TestVolumesAreExported(t *testing.T) {
	k := newKit(t)
	agent, other := k.join("node-1"), k.join("node-2")
	v := &api.Volume{Meta: api.Meta{ID: api.NewID(), Name: "data", Project: "default"}, Status: api.VolumeStatus{Phase: api.PhaseReady}}
	second := &api.Volume{Meta: api.Meta{ID: api.NewID(), Name: "second", Project: "default"}, Status: api.VolumeStatus{Phase: api.PhaseReady}}
	work, err := json.Marshal(api.VolumeExportWork{Format: api.FormatRaw, ImageCapture: api.ImageCapture{Agent: api.AgentRef{ID: agent.ID}}})
	require.NoError(t, err)
	op := &api.Operation{
		Meta: api.Meta{ID: api.NewID(), Project: "default", Created: time.Now().UTC()}, Kind: api.OpVolumeExport, State: api.OpRunning, Target: api.RefTo(v),
		Plan: &api.OperationPlan{Input: work},
	}
	k.put(v, second, op)
	upload := func(a *api.AgentJoined) string { return "/v1/agents/" + a.ID + "/images/" + op.ID + "/upload" }
	k.call(agent.Credential, http.MethodPut, upload(agent)+"?offset=0", bytes.NewReader([]byte("disk")), 200, nil)
	k.call(other.Credential, http.MethodPut, upload(other)+"?offset=0", bytes.NewReader([]byte("x")), 404, nil)
	var state UploadState
	k.call(agent.Credential, http.MethodGet, upload(agent), nil, 200, &state)
	require.True(t, state.Whole)

	url := func(volume, operation string) string {
		return "/v1/projects/default/volumes/" + volume + "/exports/" + operation
	}
	k.call(k.admin, http.MethodGet, url("data", op.ID), nil, 409, nil)
	op.State = api.OpSucceeded
	op.Result, err = json.Marshal(api.ImageExported{Format: api.FormatRaw, SHA256: "abc", Size: 4})
	require.NoError(t, err)
	d := store.NewDraft(system)
	known, err := store.Get[api.Operation](t.Context(), k.kv, system, "", op.ID)
	require.NoError(t, err)
	op.Revision = known.Revision
	d.Update(op)
	_, err = d.Commit(t.Context(), k.kv)
	require.NoError(t, err)
	k.call(agent.Credential, http.MethodPut, upload(agent)+"?offset=0", bytes.NewReader([]byte("x")), 404, nil)
	k.call(k.admin, http.MethodGet, url("data", op.ID), nil, 501, nil)
	file := filepath.Join(k.dir, "export")
	require.NoError(t, os.WriteFile(file, []byte("disk"), 0o600))
	k.server.o.ExportFile = func(id, format string) (string, string, error) {
		if id != op.ID {
			return "", "", problem.New(problem.NotFound, "it has expired")
		}
		return file, "sum of " + format, nil
	}
	r := k.call(k.admin, http.MethodGet, url("data", op.ID), nil, 200, nil)
	require.Equal(t, `"sum of raw"`, r.Header.Get("ETag"))
	require.Equal(t, "disk", string(r.body))
	for _, wrong := range []string{url("second", op.ID), url("data", api.NewID()), url("data", "x"), url("nothing", op.ID)} {
		k.call(k.admin, http.MethodGet, wrong, nil, 404, nil)
	}
	k.call(agent.Credential, http.MethodGet, url("data", op.ID), nil, 403, nil)
}
