package server

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
)

type endpoint struct{ method, path, id string }

func (e endpoint) String() string { return e.method + " " + e.path }

// endpoints reads all endpoints from the document, so that a new one cannot be forgotten here.
func endpoints(t *testing.T, s *Server) []endpoint {
	t.Helper()
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
		} `json:"paths"`
	}
	require.NoError(t, json.Unmarshal(s.OpenAPI(), &doc))
	var out []endpoint
	for path, methods := range doc.Paths {
		for method, op := range methods {
			out = append(out, endpoint{strings.ToUpper(method), path, op.OperationID})
		}
	}
	require.Greater(t, len(out), 50)
	return out
}

// filled puts something that could be there into the parameters of a path.
func filled(path, agent string) string {
	return strings.NewReplacer("{project}", "default", "{ref}", api.NewID(), "{id}", agent, "{vm}", api.NewID(), "{image}", api.NewID()).Replace(path)
}

func TestEveryEndpointNeedsAToken(t *testing.T) {
	k := newKit(t)
	agent := k.join("node-1")
	revoked := k.login(resetPassword(t, k))
	k.call(revoked, http.MethodDelete, "/v1/login", nil, 204, nil)
	expiring := k.login(resetPassword(t, k))
	k.call(expiring, http.MethodGet, "/v1/projects", nil, 200, nil)
	k.pass(13 * time.Hour) // also makes k.admin expire
	tokens := map[string]string{
		"none": "", "revoked": revoked, "expired": expiring, "made up": "ns_" + strings.Repeat("A", 43), "not one": "hello", "of an admin, too long": k.admin + "x",
	}
	public := []string{"GET /v1/health", "POST /v1/login", "POST /v1/agents/join"}
	refused := 0
	for _, e := range endpoints(t, k.server) {
		if slices.Contains(public, e.String()) {
			continue
		}
		for name, token := range tokens {
			r := k.send(token, e.method, filled(e.path, agent.ID), nil)
			require.Equal(t, 401, r.StatusCode, "%s with token %s: %s", e, name, r.body)
			require.Equal(t, problem.Unauthenticated, r.problem(t).Code)
			require.Equal(t, "Bearer", r.Header.Get("WWW-Authenticate"))
			refused++
		}
	}
	t.Logf("%d refusals", refused)

	for _, e := range endpoints(t, k.server) {
		if slices.Contains(public, e.String()) {
			r := k.send("", e.method, e.path, "{}")
			require.NotEqual(t, 404, r.StatusCode)
			require.NotEqual(t, 405, r.StatusCode)
			if r.StatusCode == 401 {
				require.NotContains(t, string(r.body), "a token is needed")
			}
		}
	}
	k.call("", http.MethodGet, "/openapi.json", nil, 200, nil)
	k.call("", http.MethodGet, "/docs", nil, 200, nil)
	require.Len(t, open, len(public)+2, "the open list has grown: is that meant?")
}

// Whatever is not in the document is refused, too, and no spelling of an open path opens another.
func TestUnknownAndOddPathsNeedAToken(t *testing.T) {
	k := newKit(t)
	for _, path := range []string{
		"/", "/v1", "/v1/nothing", "/v1/users", "/v1/tokens", "/metrics", "/debug/pprof/", "/v1/projects/default/secrets", "/v1/health/", "/v1//health",
		"/v1/%68ealth", "/openapi.json/../v1/projects", "/docs/%2e%2e/v1/projects", "/v1/health/../projects", "/v1/agents%2fjoin",
	} {
		require.Equal(t, 401, k.send("", http.MethodGet, path, nil).StatusCode, path)
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} {
		require.Equal(t, 401, k.send("", method, "/v1/health", nil).StatusCode, method)
	}
	require.Equal(t, 404, k.send(k.admin, http.MethodGet, "/v1/users", nil).StatusCode)
	k.send(k.admin, http.MethodGet, "/v1/nothing", nil).problem(t)
	r := k.send(k.admin, http.MethodPut, "/v1/projects", nil)
	require.Equal(t, 405, r.StatusCode)
	r.problem(t)
}

func TestAgentsReachOnlyTheirOwn(t *testing.T) {
	k := newKit(t)
	a, b := k.join("node-a"), k.join("node-b")
	mine, others := 0, 0
	for _, e := range endpoints(t, k.server) {
		if open[e.String()] {
			continue
		}
		own := strings.HasPrefix(e.path, "/v1/agents/{id}/")
		r := k.send(a.Credential, e.method, filled(e.path, b.ID), nil)
		require.Equal(t, 403, r.StatusCode, "agent a at b's %s: %s", e, r.body)
		require.Equal(t, problem.Forbidden, r.problem(t).Code)
		if own {
			mine++
			// It is let in; whether what it asks for is there or for it is another question.
			r = k.send(a.Credential, e.method, filled(e.path, a.ID), nil)
			require.NotContains(t, string(r.body), "alone", "%s: %s", e, r.body)
			r = k.send(k.admin, e.method, filled(e.path, a.ID), nil)
			require.Equal(t, 403, r.StatusCode, "admin at %s: %s", e, r.body)
		} else {
			others++
		}
	}
	require.Equal(t, 6, mine)
	t.Logf("%d endpoints are not for agents", others)
}

func TestSeedIsForTheAgentOfTheVM(t *testing.T) {
	k := newKit(t)
	a, b := k.join("node-a"), k.join("node-b")
	vm := vms(1, func(_ int, vm *api.VM) { vm.Status.Agent, vm.Spec.SSHKeys = a.ID, []string{"ssh-ed25519 AAAA"} })[0].(*api.VM)
	k.put(vm)
	var seed api.Seed
	k.call(a.Credential, http.MethodGet, "/v1/agents/"+a.ID+"/vms/"+vm.ID+"/seed", nil, 200, &seed)
	require.Equal(t, api.Seed{InstanceID: vm.ID, Hostname: vm.Spec.Hostname, SSHKeys: vm.Spec.SSHKeys}, seed)
	for _, path := range []string{"/v1/agents/" + b.ID + "/vms/" + vm.ID + "/seed", "/v1/agents/" + a.ID + "/vms/" + vm.ID + "/seed", "/v1/agents/" + b.ID + "/vms/" + api.NewID() + "/seed"} {
		require.Equal(t, 403, k.send(b.Credential, http.MethodGet, path, nil).StatusCode, path)
	}
}

func TestRejoiningRevokesTheOldCredential(t *testing.T) {
	k := newKit(t)
	old := k.join("node-a")
	path := "/v1/agents/" + old.ID + "/report"
	report := api.AgentReport{Sent: time.Now(), VMs: []api.VMObservation{}}
	k.call(old.Credential, http.MethodPost, path, report, 200, nil)
	k.call("", http.MethodPost, "/v1/agents/join", api.AgentJoin{Name: "node-a", Token: joinToken}, 503, nil) // it lives
	k.pass(fleet.SilentAfter)
	again := k.join("node-a")
	require.Equal(t, old.ID, again.ID)
	require.NotEqual(t, old.Credential, again.Credential)
	k.call(old.Credential, http.MethodPost, path, report, 401, nil)
	k.call(again.Credential, http.MethodPost, path, report, 200, nil)
	k.call("", http.MethodPost, "/v1/agents/join", api.AgentJoin{Name: "node-a", Token: joinToken + "x"}, 401, nil)
}

func TestLogin(t *testing.T) {
	k := newKit(t)
	unknown := k.send("", http.MethodPost, "/v1/login", api.Login{User: "nobody", Password: "wrong"})
	wrongPassword := k.send("", http.MethodPost, "/v1/login", api.Login{User: accounts.AdminName, Password: "wrong"})
	require.Equal(t, 401, unknown.StatusCode)
	require.Equal(t, string(unknown.body), string(wrongPassword.body), "nobody may tell users from non-users")
	for range 4 {
		require.Equal(t, 401, k.send("", http.MethodPost, "/v1/login", api.Login{User: "nobody", Password: "wrong"}).StatusCode)
	}
	r := k.send("", http.MethodPost, "/v1/login", api.Login{User: "nobody", Password: "wrong"})
	require.Equal(t, 503, r.StatusCode)
	require.Equal(t, problem.Unavailable, r.problem(t).Code)
	r = k.send("", http.MethodPost, "/v1/login", `{"user": "admin", "password": 12345678, "hours": "x"}`)
	require.Equal(t, 422, r.StatusCode)
	require.NotContains(t, string(r.body), "12345678", "a password came back")
	r = k.send("", http.MethodPost, "/v1/login", `{"user": "admin", "password": "topsecret`)
	require.Equal(t, 422, r.StatusCode)
	require.NotContains(t, string(r.body), "topsecret", "a password came back")
}

func resetPassword(t *testing.T, k *kit) string {
	t.Helper()
	const password = "correct horse battery"
	require.NoError(t, k.accounts.SetPassword(t.Context(), accounts.AdminName, password))
	k.admin = k.login(password)
	return password
}
