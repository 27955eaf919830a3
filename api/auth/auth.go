// Package auth decides who may do what. It alone can make a Handle, and without a Handle no stored resource can be read or
// changed: a handler cannot forget the check. Roles are added in one place, the policy below. Who somebody is, is found out
// in api/accounts.
package auth

import (
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Action is what somebody wants to do with a resource.
type Action string

// The actions.
const (
	Read  Action = "read"
	Write Action = "write"
)

// Role is what somebody is.
type Role string

// The roles.
const (
	Admin  Role = "admin"  // may do everything
	Agent  Role = "agent"  // a node: reads what it needs to run its VMs, reports on itself
	System Role = "system" // the control plane's own hands; never given to a request
)

// Principal is somebody whose identity has been established.
type Principal struct {
	Name string // user name, or agent ID
	Role Role
}

// Handle is a principal's authority. Its zero value allows nothing.
type Handle struct {
	who Principal
	ok  bool
}

// Who returns whose authority it is.
func (h Handle) Who() Principal { return h.who }

// Check returns nil if the handle allows action on resources of this kind in project ("" for cluster-wide kinds).
func (h Handle) Check(action Action, kind api.Kind, _ string) error {
	if h.ok && allowed(h.who.Role, action, kind) {
		return nil
	}
	return problem.New(problem.Forbidden, "%s may not %s %s", h.name(), action, kind).Try("ask an administrator")
}

func (h Handle) name() string {
	if !h.ok {
		return "nobody"
	}
	return string(h.who.Role) + " " + h.who.Name
}

// ControlPlane returns the authority of the control plane itself, for steps and background work. No request handler may
// call it (linted): a request acts for the one who sent it.
func ControlPlane(part string) Handle {
	return Handle{who: Principal{Name: part, Role: System}, ok: true}
}

// Authenticated returns the authority of somebody whose identity has been established. Only api/accounts, which does the
// establishing, may call it (linted). Nobody can be made the system this way: that gives a handle that allows nothing.
func Authenticated(p Principal) Handle {
	return Handle{who: p, ok: p.Name != "" && (p.Role == Admin || p.Role == Agent)}
}

// allowed is the policy.
func allowed(role Role, action Action, kind api.Kind) bool {
	switch role {
	case Admin, System:
		return true
	case Agent:
		switch kind {
		case api.KindVM, api.KindImage, api.KindPool, api.KindAgent:
			return action == Read || kind == api.KindAgent
		default:
			return false
		}
	default:
		return false
	}
}
