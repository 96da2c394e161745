"""What a demonstration of each Meta-World task shows, in several wordings.

A video model fine-tuned on one sentence a task learns that sentence; several wordings, drawn from in training, keep it
listening to what is said. The first wording of a task is its description in `envs/tasks.py`; these are the others.
"""

from __future__ import annotations

from genreward_fast.envs.tasks import canonical, describe

_REWORDED: dict[str, tuple[str, ...]] = {
    "assembly": (
        "a robot arm grips the wrench by its green handle and slips its ring onto the red peg",
        "lift the wrench and lower its ring over the red peg",
        "the robot fits the ring of the wrench over the red peg",
    ),
    "basketball": (
        "a robot arm picks up the basketball and lets it fall through the hoop",
        "lift the ball from the table and dunk it through the hoop",
        "the robot puts the basketball through the hoop",
    ),
    "bin-picking": (
        "a robot arm moves the green cube from the red bin into the blue bin",
        "take the green cube out of the red bin and put it down in the blue one",
        "the robot carries the green cube over to the blue bin",
    ),
    "box-close": (
        "a robot arm grips the lid by its handle and covers the box with it",
        "lift the lid from the table and close the box with it",
        "the robot puts the lid on the box",
    ),
    "button-press": (
        "a robot arm pushes in the red button on the front of the box",
        "press the red button at the front of the box until it is all the way in",
        "the robot presses the button on the front of the box",
    ),
    "button-press-topdown": (
        "a robot arm presses the red button down from above",
        "push down the red button on top of the box until it is all the way in",
        "the robot lowers its gripper onto the button on top of the box and presses it",
    ),
    "button-press-topdown-wall": (
        "a robot arm reaches over the wall and presses the red button down from above",
        "go over the wall and push down the button on top of the box",
        "the robot presses the button on top of the box behind the wall",
    ),
    "button-press-wall": (
        "a robot arm moves around the wall and pushes in the red button on the front of the box",
        "get past the wall and press the button at the front of the box all the way in",
        "the robot presses the button on the front of the box behind the wall",
    ),
    "coffee-button": (
        "a robot arm presses the button of the coffee machine",
        "start the coffee machine by pushing the round button on its front",
        "the robot pushes in the button on the front of the coffee machine",
    ),
    "coffee-pull": (
        "a robot arm pulls the white mug out from under the coffee machine to the green goal",
        "take hold of the mug and drag it away from the coffee machine to the green mark",
        "the robot moves the mug away from the coffee machine to the green goal",
    ),
    "coffee-push": (
        "a robot arm pushes the white mug to the coffee machine, under its spout",
        "slide the mug along the table until it stands under the spout of the coffee machine",
        "the robot moves the mug under the coffee machine's spout",
    ),
    "dial-turn": (
        "a robot arm turns the dial by half a turn",
        "rotate the dial on the table half way round",
        "the robot pushes the dial round with its gripper",
    ),
    "disassemble": (
        "a robot arm takes the wrench by its green handle and pulls its ring up off the red peg",
        "lift the wrench until its ring is clear of the red peg",
        "the robot removes the wrench from the red peg",
    ),
    "door-close": (
        "a robot arm pushes the door of the safe shut",
        "close the open door of the safe",
        "the robot swings the door of the safe until it is closed",
    ),
    "door-lock": (
        "a robot arm locks the door of the safe by turning its lock clockwise",
        "rotate the lock on the safe's door clockwise to lock it",
        "the robot turns the lock until the safe is locked",
    ),
    "door-open": (
        "a robot arm opens the door of the safe by its handle",
        "hook the handle of the safe's door and pull the door open",
        "the robot swings the door of the safe open",
    ),
    "door-unlock": (
        "a robot arm unlocks the door of the safe by turning its lock counter-clockwise",
        "rotate the lock on the safe's door counter-clockwise to unlock it",
        "the robot turns the lock until the safe is unlocked",
    ),
    "drawer-close": (
        "a robot arm pushes the green drawer shut",
        "close the open green drawer",
        "the robot slides the green drawer all the way in",
    ),
    "drawer-open": (
        "a robot arm opens the green drawer by its handle",
        "take the handle of the green drawer and pull the drawer out",
        "the robot slides the green drawer open",
    ),
    "faucet-close": (
        "a robot arm closes the faucet by turning its handle clockwise",
        "push the faucet's handle clockwise to turn it off",
        "the robot turns the faucet off",
    ),
    "faucet-open": (
        "a robot arm opens the faucet by turning its handle counter-clockwise",
        "push the faucet's handle counter-clockwise to turn it on",
        "the robot turns the faucet on",
    ),
    "hammer": (
        "a robot arm takes the red hammer and hits the nail into the wooden box",
        "grasp the hammer and drive the nail in with it",
        "the robot hammers the nail into the box",
    ),
    "hand-insert": (
        "a robot arm lowers its gripper into the hole in the table",
        "move the hand over the hole in the table and put it in",
        "the robot reaches down into the hole in the table",
    ),
    "handle-press": (
        "a robot arm presses the handle of the box down from above",
        "push the handle on the box down as far as it goes",
        "the robot pushes down the handle on the box",
    ),
    "handle-press-side": (
        "a robot arm presses down the handle on the side of the box",
        "push the handle at the side of the box down as far as it goes",
        "the robot pushes down the sideways handle of the box",
    ),
    "handle-pull": (
        "a robot arm pulls the handle of the box up from below",
        "lift the handle on the box as far as it goes",
        "the robot raises the handle on the box",
    ),
    "handle-pull-side": (
        "a robot arm pulls up the handle on the side of the box",
        "lift the handle at the side of the box as far as it goes",
        "the robot raises the sideways handle of the box",
    ),
    "lever-pull": (
        "a robot arm lifts the lever until it stands upright",
        "swing the lever up to the vertical",
        "the robot pulls the lever up",
    ),
    "peg-insert-side": (
        "a robot arm grips the green peg and inserts it into the hole in the side of the wooden block",
        "take the green peg and slide it into the hole in the block",
        "the robot inserts the peg sideways into the block",
    ),
    "peg-unplug-side": (
        "a robot arm unplugs the peg from the side of the white block",
        "grip the peg and draw it sideways out of the white block",
        "the robot pulls the peg out of its hole in the block",
    ),
    "pick-out-of-hole": (
        "a robot arm takes the red puck out of the hole and lifts it to the blue goal",
        "reach into the hole, grasp the red puck and bring it up to the blue mark",
        "the robot lifts the puck out of the hole to the blue goal",
    ),
    "pick-place": (
        "a robot arm grasps the red puck and carries it to the blue goal",
        "lift the red puck from the table and bring it to the blue mark",
        "the robot picks up the puck and places it at the blue goal",
    ),
    "pick-place-wall": (
        "a robot arm grasps the red puck and carries it over the wall to the blue goal",
        "lift the red puck across the wall and bring it to the blue mark",
        "the robot brings the puck to the blue goal behind the wall",
    ),
    "plate-slide": (
        "a robot arm pushes the black plate forwards into the net",
        "slide the plate straight ahead into the goal net",
        "the robot moves the black plate forwards until it is in the net",
    ),
    "plate-slide-back": (
        "a robot arm drags the black plate backwards out of the net",
        "slide the plate straight back, out of the goal net",
        "the robot moves the black plate backwards until it is out of the net",
    ),
    "plate-slide-back-side": (
        "a robot arm drags the black plate sideways out of the net",
        "slide the plate to the side, out of the goal net",
        "the robot moves the black plate sideways until it is out of the net",
    ),
    "plate-slide-side": (
        "a robot arm pushes the black plate sideways into the net",
        "slide the plate to the side, into the goal net",
        "the robot moves the black plate sideways until it is in the net",
    ),
    "push": (
        "a robot arm pushes the red puck over the table to the green goal",
        "slide the red puck along the table to the green mark",
        "the robot moves the puck across the table to the green goal without lifting it",
    ),
    "push-back": (
        "a robot arm pulls the brown block backwards to the green goal",
        "slide the brown block back over the table to the green mark",
        "the robot drags the block back to the green goal",
    ),
    "push-wall": (
        "a robot arm pushes the red puck past the wall to the green goal",
        "slide the red puck around the wall to the green mark",
        "the robot moves the puck along the table to the green goal behind the wall",
    ),
    "reach": (
        "a robot arm moves its gripper to the red goal",
        "bring the hand to the red mark",
        "the robot reaches for the red goal",
    ),
    "reach-wall": (
        "a robot arm moves its gripper over the wall to the red goal",
        "bring the hand past the wall to the red mark",
        "the robot reaches across the wall for the red goal",
    ),
    "shelf-place": (
        "a robot arm grasps the blue block and sets it on the shelf",
        "lift the blue block from the table and put it on the shelf",
        "the robot places the blue block on the shelf",
    ),
    "soccer": (
        "a robot arm pushes the ball into the football goal",
        "roll the ball over the table into the goal",
        "the robot scores with the ball",
    ),
    "stick-pull": (
        "a robot arm hooks the handle of the flask with the blue stick and pulls the flask to the green goal",
        "grasp the blue stick, push it through the flask's handle and drag the flask to the green mark",
        "the robot pulls the flask with the stick",
    ),
    "stick-push": (
        "a robot arm grasps the blue stick and pushes the flask with it to the green goal",
        "take the blue stick and shove the flask to the green mark with it",
        "the robot pushes the flask with the stick",
    ),
    "sweep": (
        "a robot arm sweeps the brown block off the table",
        "push the brown block along the table until it is over the edge",
        "the robot wipes the block off the edge of the table",
    ),
    "sweep-into": (
        "a robot arm sweeps the brown block into the hole in the table",
        "push the brown block over the table until it drops into the hole",
        "the robot moves the block along the table into the hole",
    ),
    "window-close": (
        "a robot arm closes the sliding window by its handle",
        "push the window's handle until the window is shut",
        "the robot slides the window closed",
    ),
    "window-open": (
        "a robot arm opens the sliding window by its handle",
        "push the window's handle until the window is open",
        "the robot slides the window open along its frame",
    ),
}


def captions(task: str) -> tuple[str, ...]:
    """What the task asks for or its demonstration shows, in at least three wordings, without full stops.

    Raises:
        UserError: no task is called that.
    """
    return (describe(task), *_REWORDED[canonical(task)])
