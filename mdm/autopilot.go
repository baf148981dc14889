// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"braid/mdm/pb"
	"braid/mdm/pb/pbconnect"
	"braid/mdm/state"
)

// Terms of the autopilot.
const (
	pilotLook = 2 * time.Second // between two looks whether something is to be done
	// DefaultHookTimeout bounds the autopilot's hook: a machine may have to be started.
	DefaultHookTimeout = 10 * time.Minute
	hookWait           = 2 * time.Second // for its end, after it was told to
	hookOutput         = 4 << 10         // bytes of its output that are kept
)

// pilot is what the leader remembers of the autopilot.
type pilot struct {
	config  Config
	addr    string
	looked  time.Time
	hooks   sync.WaitGroup
	running atomic.Bool // the hook
	now     atomic.Pointer[state.Decision]
}

// stuck is what status says while the autopilot cannot help.
func (p *pilot) stuck(*state.State) []string {
	if d := p.now.Load(); d != nil && d.Stuck {
		return []string{fmt.Sprintf("the cluster is %d%% full, and the autopilot cannot help: %s", d.Fill, d.Why)}
	}
	return nil
}

func (p *pilot) hook() state.Hook {
	switch {
	case p.config.Hook == "":
		return state.NoHook
	case p.running.Load():
		return state.HookRunning
	}
	return state.HookReady
}

// steer does what the autopilot decides. It belongs to the leader's tick.
func (l *leader) steer(ctx context.Context) error {
	p := &l.pilot
	if now := l.now(); now.Sub(p.looked) >= pilotLook {
		p.looked = now
	} else {
		return nil
	}
	used, hook, empty := l.leases.usage(), p.hook(), true
	l.store.read(func(st *state.State) {
		tx, d := st.Steer(used, hook, l.now())
		empty = tx.Empty()
		p.now.Store(&d)
	})
	if empty {
		return nil
	}
	var d state.Decision
	if err := l.change(ctx, func(st *state.State, now time.Time) (tx *state.Tx, err error) {
		tx, d = st.Steer(used, hook, now)
		return tx, nil
	}); err != nil {
		return fmt.Errorf("autopilot: %w", err)
	}
	if d.Acts() {
		l.log.Warn("the autopilot acts", "fill", d.Fill, "does", d.Why)
	}
	if d.Hook {
		l.runHook(ctx, d)
	}
	return nil
}

// runHook runs the hook beside everything else, and makes an event of its end. It
// ends with the term: the next leader knows from the history that it was run.
func (l *leader) runHook(ctx context.Context, d state.Decision) {
	p := &l.pilot
	p.running.Store(true)
	p.hooks.Go(func() {
		defer p.running.Store(false)
		says, err := p.exec(ctx, d)
		if err := l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
			return st.HookEnded(err, says, now), nil
		}); err != nil && ctx.Err() == nil {
			l.log.Warn("how the autopilot's hook ended could not be written down", "error", err)
		}
	})
}

// exec runs the hook without a shell, in a process group of its own, and returns the
// last line that it printed. Its output goes to a file: what it starts and leaves
// running, an sds, keeps a place to write to, and holds nothing up.
func (p *pilot) exec(ctx context.Context, d state.Decision) (says string, err error) {
	timeout := p.config.HookTimeout
	if timeout <= 0 {
		timeout = DefaultHookTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := exec.CommandContext(ctx, p.config.Hook)
	c.Env = append(os.Environ(), "BRAID_MDM="+p.addr, fmt.Sprintf("BRAID_FILL=%d", d.Fill),
		fmt.Sprintf("BRAID_DEVICES=%d", d.InUse))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGTERM) }
	c.WaitDelay = hookWait
	out, err := os.CreateTemp("", "braid-hook-")
	if err != nil {
		return "", err
	}
	defer out.Close()
	_ = os.Remove(out.Name())
	c.Stdout, c.Stderr = out, out
	if err = c.Run(); ctx.Err() != nil && c.Process != nil {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) // whoever did not listen
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("it took longer than %v and was ended", timeout)
		}
	}
	return lastLine(out), err
}

func lastLine(f *os.File) string {
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(st.Size(), hookOutput))
	n, _ := f.ReadAt(b, st.Size()-int64(len(b)))
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(b[:n]), "?")), "\n")
	return lines[len(lines)-1]
}

// SpareDevices makes devices spare, or puts spares to use.
func (a *api) SpareDevices(ctx context.Context, r *connect.Request[pb.SpareDevicesRequest],
) (*connect.Response[pb.MovePlan], error) {
	var plan state.MovePlan
	err := a.change(ctx, func(st *state.State, l *leader, now time.Time) (*state.Tx, error) {
		tx, p, err := st.PlanSpare(toDevices(r.Msg.Devices), r.Msg.Spare, state.Membership{Used: l.leases.usage()}, now)
		if plan = p; err == nil && r.Msg.DryRun {
			tx = st.Begin(now)
		}
		return tx, err
	})
	if err != nil {
		return nil, err
	}
	if l := a.m.leads(); l != nil && !r.Msg.DryRun {
		l.tendNow(decided(ctx))
	}
	return connect.NewResponse(a.toPlan(plan)), nil
}

// GetAutopilot tells what is set, what it did and what it does.
func (a *api) GetAutopilot(ctx context.Context, r *connect.Request[pb.AutopilotRequest],
) (*connect.Response[pb.Autopilot], error) {
	if resp := askLeader(ctx, a.m, r, pbconnect.MdmClient.GetAutopilot); resp != nil {
		return resp, nil
	}
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.Autopilot{Hook: l.pilot.config.Hook != ""}
	used := l.leases.usage()
	a.m.store.read(func(st *state.State) {
		p, d := st.Autopilot(), st.Decide(used, l.pilot.hook(), l.now())
		out.Mode, out.Threshold, out.Ceiling, out.CooldownMs = p.Mode, p.Threshold, p.Ceiling,
			uint64(p.Cooldown.Milliseconds())
		for _, e := range p.History {
			out.History = append(out.History, &pb.Expansion{AtMs: e.At.UnixMilli(), Device: uint32(e.Device),
				What: e.What, Fill: e.Fill})
		}
		out.Fill, out.Devices, out.Spares = d.Fill, uint32(d.InUse), uint32(d.Spares)
		out.Doing, out.Stuck = d.Why, d.Stuck
	})
	if out.Doing == "" && l.pilot.running.Load() {
		out.Doing = "its hook runs"
	}
	return connect.NewResponse(out), nil
}

// SetAutopilot sets what the request names.
func (a *api) SetAutopilot(ctx context.Context, r *connect.Request[pb.SetAutopilotRequest],
) (*connect.Response[pb.Autopilot], error) {
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		next := st.Autopilot()
		if r.Msg.Mode != nil {
			next.Mode = *r.Msg.Mode
		}
		if r.Msg.Threshold != nil {
			next.Threshold = *r.Msg.Threshold
		}
		if r.Msg.Ceiling != nil {
			next.Ceiling = *r.Msg.Ceiling
		}
		if r.Msg.CooldownMs != nil {
			next.Cooldown = time.Duration(min(*r.Msg.CooldownMs, 1<<40)) * time.Millisecond
		}
		return st.SetAutopilot(next, now)
	})
	if err != nil {
		return nil, err
	}
	return a.GetAutopilot(ctx, connect.NewRequest(&pb.AutopilotRequest{}))
}
