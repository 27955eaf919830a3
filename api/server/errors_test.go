package server

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
)

func TestBadRequests(t *testing.T) {
	k := newKit(t)
	const vpcs, vmsPath = "/v1/projects/default/vpcs", "/v1/projects/default/vms"
	vm := `{"name":"web","vcpus":1,"memory":1073741824,"image":"debian"`
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		code               problem.Kind
		field              string // that must be named
	}{
		"broken JSON":              {"POST", vpcs, `{"name": "a"`, nil, problem.Invalid, "body"},
		"two documents":            {"POST", vpcs, `{"name":"a","cidr":"10.0.0.0/16"}{}`, nil, problem.Invalid, "body"},
		"not an object":            {"POST", vpcs, `[1]`, nil, problem.Invalid, "body"},
		"no body":                  {"POST", vpcs, ``, nil, problem.Invalid, ""},
		"null":                     {"POST", vpcs, `null`, nil, problem.Invalid, "body"},
		"wrong content type":       {"POST", vpcs, `name: a`, []string{"Content-Type", "application/yaml"}, problem.Invalid, ""},
		"form":                     {"POST", vpcs, `name=a`, []string{"Content-Type", "application/x-www-form-urlencoded"}, problem.Invalid, ""},
		"unknown field":            {"POST", vpcs, `{"name":"a","cidr":"10.0.0.0/16","cider":"x"}`, nil, problem.Invalid, "cider"},
		"unknown field in a list":  {"POST", vmsPath, vm + `,"nics":[{"subnet":"a","speed":1}]}`, nil, problem.Invalid, "nics[0].speed"},
		"field of another case":    {"POST", vpcs, `{"Name":"a","cidr":"10.0.0.0/16"}`, nil, problem.Invalid, "Name"},
		"wrong type":               {"POST", vpcs, `{"name":1,"cidr":"10.0.0.0/16"}`, nil, problem.Invalid, "name"},
		"missing field":            {"POST", vpcs, `{"name":"a"}`, nil, problem.Invalid, ""},
		"bad CIDR":                 {"POST", vpcs, `{"name":"a","cidr":"10.0.0.0/99"}`, nil, problem.Invalid, "cidr"},
		"CIDR with host bits":      {"POST", vpcs, `{"name":"a","cidr":"10.0.0.1/16"}`, nil, problem.Invalid, "cidr"},
		"bad name":                 {"POST", vpcs, `{"name":"../etc","cidr":"10.0.0.0/16"}`, nil, problem.Invalid, "name"},
		"very long name":           {"POST", vpcs, `{"name":"` + strings.Repeat("a", 10000) + `","cidr":"10.0.0.0/16"}`, nil, problem.Invalid, "name"},
		"name with a zero byte":    {"POST", vpcs, `{"name":"a\u0000b","cidr":"10.0.0.0/16"}`, nil, problem.Invalid, "name"},
		"no vCPU":                  {"POST", vmsPath, strings.Replace(vm, `"vcpus":1`, `"vcpus":0`, 1) + "}", nil, problem.Invalid, "vcpus"},
		"half a vCPU":              {"POST", vmsPath, strings.Replace(vm, `"vcpus":1`, `"vcpus":0.5`, 1) + "}", nil, problem.Invalid, "vcpus"},
		"huge number":              {"POST", vmsPath, strings.Replace(vm, `1073741824`, `1e300`, 1) + "}", nil, problem.Invalid, "body"},
		"memory in KiB":            {"POST", vmsPath, strings.Replace(vm, `1073741824`, `1048577`, 1) + "}", nil, problem.Invalid, "memory"},
		"bad enum":                 {"POST", "/v1/pools", `{"name":"p","type":"zfs","path":"/vms"}`, nil, problem.Invalid, "type"},
		"path that climbs":         {"POST", "/v1/pools", `{"name":"p","type":"dir","path":"/vms/../etc"}`, nil, problem.Invalid, "path"},
		"no such image":            {"POST", vmsPath, vm + "}", nil, problem.NotFound, ""},
		"unknown project":          {"GET", "/v1/projects/nowhere/vms", "", nil, problem.NotFound, ""},
		"project that climbs":      {"GET", "/v1/projects/..%2fdefault/vms", "", nil, problem.Invalid, "path.project"},
		"project with a slash":     {"GET", "/v1/projects/default%2fx/vms", "", nil, problem.Invalid, "path.project"},
		"write in unknown project": {"POST", "/v1/projects/nowhere/vpcs", `{"name":"a","cidr":"10.0.0.0/16"}`, nil, problem.NotFound, ""},
		"ref that climbs":          {"GET", vpcs + "/..%2f..%2fdefault", "", nil, problem.Invalid, "path.ref"},
		"ref with a zero byte":     {"GET", vpcs + "/a%00b", "", nil, problem.Invalid, "path.ref"},
		"very long ref":            {"GET", vpcs + "/" + strings.Repeat("a", 5000), "", nil, problem.Invalid, "path.ref"},
		"delete what is not there": {"DELETE", vpcs + "/nothing", "", nil, problem.NotFound, ""},
		"delete that climbs":       {"DELETE", vpcs + "/%2e%2e%2fx", "", nil, problem.Invalid, "path.ref"},
		"operation by name":        {"GET", "/v1/operations/last", "", nil, problem.Invalid, "path.ref"},
		"no such operation":        {"POST", "/v1/operations/" + api.NewID() + "/retry", "", nil, problem.NotFound, ""},
		"bad state":                {"GET", "/v1/operations?state=broken", "", nil, problem.Invalid, "query.state"},
		"bad wait":                 {"POST", "/v1/noop?wait=forever", "", nil, problem.Invalid, "query.wait"},
		"negative wait":            {"POST", "/v1/noop?wait=-1s", "", nil, problem.Invalid, "query.wait"},
		"unknown query":            {"GET", vpcs + "?pagesize=1", "", nil, problem.Invalid, "query.pagesize"},
		"page size no number":      {"GET", vpcs + "?page_size=x", "", nil, problem.Invalid, "query.page_size"},
		"negative page size":       {"GET", vpcs + "?page_size=-1", "", nil, problem.Invalid, "query.page_size"},
		"bad page token":           {"GET", vpcs + "?page_token=AAAA", "", nil, problem.Invalid, "query.page_token"},
		"bad label":                {"GET", vpcs + "?label=x", "", nil, problem.Invalid, "query.label"},
		"long idempotency key":     {"POST", "/v1/noop", "", []string{"Idempotency-Key", strings.Repeat("k", 129)}, problem.Invalid, "header.Idempotency-Key"},
		"odd idempotency key":      {"POST", "/v1/noop", "", []string{"Idempotency-Key", "k\u00e9y"}, problem.Invalid, "header.Idempotency-Key"},
		"bare If-Match":            {"DELETE", vpcs + "/a", "", []string{"If-Match", "42"}, problem.Invalid, "header.If-Match"},
		"weak If-Match":            {"DELETE", vpcs + "/a", "", []string{"If-Match", `W/"42"`}, problem.Invalid, "header.If-Match"},
		"unknown event kind":       {"GET", "/v1/events?kinds=users", "", nil, problem.Invalid, "query.kinds"},
		"negative since":           {"GET", "/v1/events?since=-1", "", nil, problem.Invalid, "query.since"},
		"bad Last-Event-ID":        {"GET", "/v1/events", "", []string{"Last-Event-ID", "x"}, problem.Invalid, "header.Last-Event-ID"},
		"events of the future":     {"GET", "/v1/events?since=999999999", "", nil, problem.Conflict, ""},
		"upload without UUID":      {"PUT", "/v1/uploads/..%2f..%2fpasswd", "x", nil, problem.Invalid, "path.id"},
		"stop too late":            {"POST", vmsPath + "/web/stop", `{"timeout": 99999}`, nil, problem.Invalid, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			var body any
			if c.body != "" || c.method == "POST" {
				body = c.body
			}
			r := k.send(k.admin, c.method, c.path, body, c.headers...)
			d := r.problem(t)
			require.Equal(t, c.code, d.Code, "%s", r.body)
			require.Equal(t, problem.TraitsOf(c.code).Status, r.StatusCode)
			require.Less(t, len(r.body), 20000)
			if c.field != "" {
				var paths []string
				for _, f := range d.Errors {
					paths = append(paths, f.Path)
				}
				require.Contains(t, paths, c.field, "%s", r.body)
			}
			require.NotEmpty(t, r.Header.Get("X-Request-Id"))
		})
	}
	var page page[api.Operation]
	k.call(k.admin, "GET", "/v1/operations", nil, 200, &page)
	require.Empty(t, page.Items, "a bad request was accepted")
}

func TestLargeBody(t *testing.T) {
	k := newKit(t)
	for _, size := range []int{maxBody, 10 << 20} {
		body := `{"name":"a","cidr":"` + strings.Repeat("1", size-22) + `"}`
		r := k.send(k.admin, "POST", "/v1/projects/default/vpcs", body)
		require.Equal(t, 413, r.StatusCode)
		require.Equal(t, problem.TooLarge, r.problem(t).Code)
		// Without a length, too.
		r = k.send(k.admin, "POST", "/v1/projects/default/vpcs", struct{ *bytes.Reader }{bytes.NewReader([]byte(body))})
		require.Equal(t, 413, r.StatusCode)
	}
	r := k.send(k.admin, "POST", "/v1/projects/default/vpcs", `{"name":"a","cidr":"`+strings.Repeat("1", maxBody-100)+`"}`)
	require.Equal(t, 422, r.StatusCode, "just below the limit it is read")
}

// broken panics where an operation should be accepted.
type broken struct{ Admission }

func (broken) Noop(context.Context, auth.Handle, admission.Options) (*api.Operation, error) {
	panic("the cat sat on the keyboard")
}

func (broken) Audit(context.Context, auth.Handle, admission.Options, api.AuditRequest) (*api.Operation, error) {
	return nil, http.ErrNotSupported
}

func TestWhatIsUnexpectedIsLoggedAndNotShown(t *testing.T) {
	var log bytes.Buffer
	k := newKit(t, func(o *Options) {
		o.Admission = broken{o.Admission}
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	for path, cause := range map[string]string{"/v1/noop": "the cat sat", "/v1/audit": http.ErrNotSupported.Error()} {
		r := k.send(k.admin, "POST", path, "{}", "X-Request-Id", "find-me")
		require.Equal(t, 500, r.StatusCode)
		d := r.problem(t)
		require.Equal(t, problem.Internal, d.Code)
		require.NotContains(t, string(r.body), cause)
		require.Contains(t, log.String(), cause)
		require.Contains(t, log.String(), "id=find-me")
	}
	require.NotContains(t, log.String(), k.admin, "a token was logged")
	k.call(k.admin, "GET", "/v1/projects", nil, 200, nil)
}
