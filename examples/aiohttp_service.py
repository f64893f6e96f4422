"""An aiohttp service: python -m examples.aiohttp_service [PORT]

curl -X POST localhost:8080/orders/o-1?cents=4200         # waits for the receipt
curl -X POST localhost:8080/orders/o-2/start?cents=4200   # answers with the workflow's id
curl localhost:8080/orders/o-2                            # says where it stands
"""

import sys

from aiohttp import web

from dbos_async import DBOS, Retry, WorkflowNotFoundError

dbos = DBOS("aiohttp-shop")
routes = web.RouteTableDef()


@dbos.step(retry=Retry(max_attempts=5))
async def charge(order_id: str, cents: int) -> str:
    return f"payment of {cents} for {order_id}, key {dbos.idempotency_key}"


@dbos.workflow()
async def checkout(order_id: str, cents: int) -> str:
    payment = await charge(order_id, cents)
    await dbos.sleep(1)  # durable: a second or a month
    return f"receipt for {payment}"


@routes.post("/orders/{id}")
async def order(request: web.Request) -> web.Response:
    order_id, cents = request.match_info["id"], int(request.query["cents"])
    run = checkout.with_options(workflow_id=order_id)
    return web.json_response({"receipt": await run(order_id, cents)})


@routes.post("/orders/{id}/start")
async def start(request: web.Request) -> web.Response:
    order_id, cents = request.match_info["id"], int(request.query["cents"])
    handle = await dbos.start_workflow(checkout.with_options(workflow_id=order_id), order_id, cents)
    return web.json_response({"workflow_id": handle.workflow_id}, status=202)


@routes.get("/orders/{id}")
async def look(request: web.Request) -> web.Response:
    try:
        handle = await dbos.retrieve_workflow(request.match_info["id"])
    except WorkflowNotFoundError as error:
        raise web.HTTPNotFound(text=str(error)) from error
    status = await handle.get_status()
    return web.json_response({"status": status.status, "receipt": status.output})


app = web.Application()
app.add_routes(routes)
app.cleanup_ctx.append(dbos.lifespan)

if __name__ == "__main__":
    web.run_app(app, port=int(sys.argv[1]) if sys.argv[1:] else 8080)
