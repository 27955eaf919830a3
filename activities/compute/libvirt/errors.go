package libvirt

import (
	"errors"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/api/problem"
)

// lost reports whether err says that the connection is gone, rather than that libvirt refused something.
func lost(err error) bool {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case libvirt.ERR_NO_CONNECT, libvirt.ERR_INVALID_CONN, libvirt.ERR_RPC:
		return true
	case libvirt.ERR_SYSTEM_ERROR, libvirt.ERR_INTERNAL_ERROR, libvirt.ERR_OPERATION_FAILED:
		// "Cannot recv data: Connection reset by peer", "client socket is closed", "connection closed due to keepalive timeout"
		return e.Domain == libvirt.FROM_RPC || e.Domain == libvirt.FROM_REMOTE
	default:
		return false
	}
}

// explain makes a problem of an error of libvirt's. An error that already is a problem stays as it is.
func explain(err error, what, uri string) error {
	var e libvirt.Error
	var p *problem.Problem
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
		return p
	case !errors.As(err, &e):
		return problem.Wrap(err, problem.Internal, "cannot %s", what)
	case lost(err):
		return problem.New(problem.Unavailable, "cannot %s: the connection to libvirt at %s was lost", what, uri).Because("%s", e.Message)
	}
	return problem.New(kindOf(e), "cannot %s", what).Because("libvirt: %s", e.Message)
}

// kindOf sorts what libvirt refuses. What is not in the list is internal, which is tried again.
func kindOf(e libvirt.Error) problem.Kind {
	switch e.Code {
	case libvirt.ERR_NO_DOMAIN:
		return problem.NotFound
	case libvirt.ERR_OPERATION_TIMEOUT, libvirt.ERR_RESOURCE_BUSY, libvirt.ERR_AGENT_UNRESPONSIVE:
		return problem.Unavailable
	case libvirt.ERR_DOM_EXIST, libvirt.ERR_OPERATION_INVALID, libvirt.ERR_OPERATION_ABORTED:
		return problem.Conflict
	case libvirt.ERR_CONFIG_UNSUPPORTED, libvirt.ERR_NO_SUPPORT, libvirt.ERR_ARGUMENT_UNSUPPORTED, libvirt.ERR_CPU_INCOMPATIBLE, libvirt.ERR_MIGRATE_UNSAFE,
		libvirt.ERR_OPERATION_UNSUPPORTED:
		return problem.Unsupported
	case libvirt.ERR_XML_ERROR, libvirt.ERR_XML_DETAIL, libvirt.ERR_INVALID_ARG:
		return problem.Invalid
	case libvirt.ERR_ACCESS_DENIED, libvirt.ERR_AUTH_FAILED, libvirt.ERR_OPERATION_DENIED:
		return problem.Forbidden
	case libvirt.ERR_NO_MEMORY:
		return problem.NoCapacity
	}
	if strings.Contains(e.Message, "No more available PCI slots") {
		return problem.NoCapacity
	}
	// QEMU's own last words are all there is to tell a full host from a bug.
	if strings.Contains(e.Message, "cannot set up guest memory") || strings.Contains(e.Message, "Cannot allocate memory") {
		return problem.NoCapacity
	}
	return problem.Internal
}

// noDisk reports whether err says that what a disk of a domain is written to is not there: libvirt says it of a file, and QEMU of the rest.
func noDisk(err error) bool {
	var e libvirt.Error
	return errors.As(err, &e) && strings.Contains(e.Message, "No such file or directory") &&
		(strings.Contains(e.Message, "Cannot access storage file") || strings.Contains(e.Message, "error reading header from"))
}

// missing reports whether err says that a domain is not there.
func missing(err error) bool {
	var e libvirt.Error
	return errors.As(err, &e) && e.Code == libvirt.ERR_NO_DOMAIN || problem.Is(err, problem.NotFound)
}
