package fence

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"

	"github.com/nextstack/nextstack/api/problem"
)

// Timing of an IPMI device. It speaks UDP, and they are slow: a question is asked again before it counts as lost.
const (
	ipmiPort    = 623
	ipmiAnswer  = 2 * time.Second
	ipmiRetries = 2
	// ipmiPoll is how often a device is asked whether the power is off yet.
	ipmiPoll = 300 * time.Millisecond
	// ipmiLeave is how long a device may take to hear that a session is over. It forgets those that it does not hear of.
	ipmiLeave = time.Second
)

// suites are the cipher suites that are tried, best first. Devices would say which they know, but some that know 3 do not
// answer that question.
var suites = []types.CipherSuiteID{types.CipherSuiteID17, types.CipherSuiteID3}

// ipmi is a device that speaks IPMI 2.0 over LAN.
type ipmi struct {
	device Device
	host   string
	port   int
}

func newIPMI(d Device) (*ipmi, error) {
	host, port, err := split(d.Address, ipmiPort)
	return &ipmi{device: d, host: host, port: port}, err
}

// Status implements Driver.
func (d *ipmi) Status(ctx context.Context) (on bool, err error) {
	err = d.session(ctx, func(c *client.Client) error {
		on, err = power(ctx, c)
		return err
	})
	return on, err
}

// PowerOff implements Driver.
func (d *ipmi) PowerOff(ctx context.Context) error {
	return d.session(ctx, func(c *client.Client) error {
		for asked := false; ; {
			on, err := power(ctx, c)
			if err != nil {
				return err
			}
			if !on {
				return nil
			}
			if !asked {
				if _, err := c.ChassisControl(ctx, chassis.ChassisControlPowerDown); err != nil {
					return problem.Wrap(err, problem.Unavailable, "it does not power off")
				}
				asked = true
			}
			t := time.NewTimer(ipmiPoll)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return problem.New(problem.Timeout, "its power is still on").Because("it was told to power off, and says that it has not")
			}
		}
	})
}

func power(ctx context.Context, c *client.Client) (on bool, err error) {
	status, err := c.GetChassisStatus(ctx)
	if err != nil {
		return false, problem.Wrap(err, problem.Unavailable, "it does not say whether the power is on")
	}
	return status.PowerIsOn, nil
}

// session runs do in a session with the device. A device that refuses a suite is tried with the next one.
func (d *ipmi) session(ctx context.Context, do func(*client.Client) error) error {
	var errs []error
	for _, suite := range suites {
		err := d.with(ctx, suite, do)
		var refused *refusal
		if !errors.As(err, &refused) {
			return d.explain(ctx, err)
		}
		errs = append(errs, refused.err)
		if ctx.Err() != nil || unheard(refused.err) {
			break // another suite would not be heard either
		}
	}
	return d.explain(ctx, errors.Join(errs...))
}

// refusal is a session that did not begin.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }

func (d *ipmi) with(ctx context.Context, suite types.CipherSuiteID, do func(*client.Client) error) error {
	c, err := client.NewClient(d.host, d.port, d.device.User, d.device.Password)
	if err != nil {
		return problem.Wrap(err, problem.Invalid, "the fence device at %s cannot be used", d.device.Address)
	}
	c.WithTimeout(ipmiAnswer).WithRetry(ipmiRetries).WithCipherSuiteID(suite)
	err = c.Connect(ctx)
	defer func() {
		leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), ipmiLeave)
		defer cancel()
		_ = c.Close(leave) // it forgets us in time
	}()
	if err != nil {
		return &refusal{err}
	}
	return do(c)
}

// explain says what an error means to whoever has to do something about it.
func (d *ipmi) explain(ctx context.Context, err error) error {
	var p *problem.Problem
	if err == nil || errors.As(err, &p) {
		return problem.Wrap(err, problem.Unavailable, "the fence device at %s has trouble", d.device.Address)
	}
	why := strings.Join(strings.Fields(err.Error()), " ")
	switch {
	case denied(err):
		return problem.New(problem.Unauthenticated, "the fence device at %s does not take user %s with this password", d.device.Address, d.device.User).
			Because("%s", why).Try("set the device's user and password again")
	case ctx.Err() != nil || unheard(err):
		return problem.New(problem.Unavailable, "the fence device at %s does not answer", d.device.Address).Because("%s", why).
			Try("see that it has power and is reached from the control plane over UDP")
	default:
		return problem.New(problem.Unavailable, "the fence device at %s refuses", d.device.Address).Because("%s", why)
	}
}

// The library tells of what failed in words only, once it has tried a suite.

// unheard reports whether the device did not even answer the first question, which comes before all suites.
func unheard(err error) bool {
	return strings.Contains(err.Error(), "Get Channel Authentication Capabilities")
}

// denied reports whether the device answered, and did not believe who we are.
func denied(err error) bool {
	s := err.Error()
	return strings.Contains(s, "rakp") && !strings.Contains(s, "timeout") && !strings.Contains(s, "deadline")
}
